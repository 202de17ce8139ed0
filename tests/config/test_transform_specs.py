import subprocess
import sys

import pytest

from cvtrain.config.composer import conf_dir
from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.augment import AugmentConfig, AugmentLibrary
from cvtrain.config.transform_names import ALBUMENTATIONS, KORNIA, TORCHVISION
from cvtrain.config.transform_specs import TransformSpec, closest_names, parse_transforms, transform_problems


def errors(*items, table=TORCHVISION):
    with pytest.raises(ConfigError) as caught:
        parse_transforms(list(items), key="augment.transforms", table=table)
    return str(caught.value)


def test_items_are_names_or_names_with_arguments():
    specs = parse_transforms(
        [
            "RandomResizedCrop",
            {"RandomHorizontalFlip": None},
            {"RandomApply": {"p": 0.3, "transforms": [{"GaussianBlur": {"kernel_size": 5}}, "RandomInvert"]}},
        ],
        key="augment.transforms",
        table=TORCHVISION,
    )
    nested = "augment.transforms[2].RandomApply.transforms"
    assert specs == (
        TransformSpec("RandomResizedCrop", {}, (), "augment.transforms[0].RandomResizedCrop"),
        TransformSpec("RandomHorizontalFlip", {}, (), "augment.transforms[1].RandomHorizontalFlip"),
        TransformSpec(
            "RandomApply",
            {"p": 0.3},
            (
                TransformSpec("GaussianBlur", {"kernel_size": 5}, (), f"{nested}[0].GaussianBlur"),
                TransformSpec("RandomInvert", {}, (), f"{nested}[1].RandomInvert"),
            ),
            "augment.transforms[2].RandomApply",
        ),
    )


def test_an_empty_list_has_no_specs():
    assert parse_transforms([], key="augment.transforms", table=TORCHVISION) == ()


def test_what_was_given_is_not_changed():
    item = {"RandomApply": {"p": 0.3, "transforms": ["RandomInvert"]}}
    (spec,) = parse_transforms([item], key="augment.transforms", table=TORCHVISION)
    spec.arguments["p"] = 1.0
    assert item == {"RandomApply": {"p": 0.3, "transforms": ["RandomInvert"]}}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("HorizontalFlp", "HorizontalFlp is no transform of torchvision that cvtrain offers\n  closest: RandomHoriz"),
        ("randomhorizontalflip", "closest: RandomHorizontalFlip"),
        ("CoarseDropout", "albumentations has it: augment.library=albumentations"),
        ("RandomMotionBlur", "kornia has it: augment.batch_transforms"),
        ("Qwertyuiop", "docs/augmentation.md lists what torchvision offers"),
        ("Normalize", "Normalize of torchvision has no place here\n  leave it out: images stay uint8 until the device"),
        ("ToTensor", "leave it out: images stay uint8 until the device"),
        ("MixUp", "set augment.mixup_alpha or augment.cutmix_alpha"),
        ("TenCrop", "it makes several images of one: use RandomCrop or CenterCrop"),
        ("Lambda", "it needs a function"),
        ({"Lambda": {"lambd": 1}}, "it needs a function"),
        ({"EvalResize": {"size": 3}}, "augment.transforms[0].EvalResize={size:3}: EvalResize takes no arguments"),
        (3, "augment.transforms[0]=3: is no transform\n  write a name, or one name with its arguments"),
        ({}, "augment.transforms[0]={}: is no transform"),
        (
            {"Pad": {"padding": 1}, "RandomInvert": None},
            "augment.transforms[0]={Pad:{padding:1},RandomInvert:null}: is no",
        ),
        ({"Pad": 3}, "augment.transforms[0].Pad=3: arguments of a transform are a mapping"),
        ({"RandomApply": {"p": 1}}, "augment.transforms[0].RandomApply.transforms=null: is no list of transforms"),
        (
            {"RandomApply": {"transforms": ["EvalResize"]}},
            "RandomApply.transforms[0].EvalResize: may only be the first item of the list",
        ),
        (
            {"RandomChoice": {"transforms": ["RandomInvrt"]}},
            "augment.transforms[0].RandomChoice.transforms[0].RandomInvrt: RandomInvrt is no transform",
        ),
    ],
)
def test_a_wrong_item_is_told_with_its_remedy(item, message):
    assert message in errors(item)


def test_every_wrong_item_is_told_at_once():
    message = errors("RandomInvert", "A", {"B": 1}, "EvalResize")
    assert [line.split(":")[0] for line in message.splitlines() if not line.startswith(" ")] == [
        "augment.transforms[1].A",
        "augment.transforms[2].B=1",
        "augment.transforms[3].EvalResize",
    ]


def test_batches_have_no_evaluation_resize():
    assert "EvalResize is no transform of kornia" in errors("EvalResize", table=KORNIA)


def test_both_lists_of_a_config_are_checked():
    augment = AugmentConfig(
        name="mine",
        library=AugmentLibrary.albumentations,
        transforms=["HorizontalFlip", "RandomHorizontalFlip"],
        batch_transforms=["RandomGamma", "Gamma"],
    )
    keys = [problem.key for problem in transform_problems(augment)]
    assert keys == ["augment.transforms[1].RandomHorizontalFlip", "augment.batch_transforms[1].Gamma"]


def test_close_names_come_before_those_that_contain_the_word():
    names = ["RandomCrop", "CenterCrop", "RandomResizedCrop", "Crops"]
    assert closest_names("Crop", names) == ["Crops", "RandomCrop", "CenterCrop"]
    assert closest_names("zzz", names) == []


@pytest.mark.parametrize("table", [TORCHVISION, ALBUMENTATIONS, KORNIA], ids=lambda table: table.library)
def test_a_name_is_in_one_place_of_its_table(table):
    everything = [*table.names, *table.compositions, *table.refused]
    assert len(everything) == len(set(everything))
    assert set(table.sizing) <= set(table.names)


def test_wrong_names_are_known_without_loading_a_library():
    program = (
        "import sys; from cvtrain.config.transform_specs import transform_problems; "
        "from cvtrain.config.schema.augment import AugmentConfig; "
        "assert transform_problems(AugmentConfig(name='x', transforms=['A'])); "
        "print(sorted({'torch', 'torchvision', 'albumentations', 'kornia', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("table", [TORCHVISION, ALBUMENTATIONS, KORNIA], ids=lambda table: table.library)
def test_the_documentation_lists_every_name(table):
    page = conf_dir().parent / "docs" / "augmentation.md"
    _, _, listed = page.read_text(encoding="utf-8").partition("## Every name")
    section = next(part for part in listed.split("\n\n") if part.strip().startswith(min(table.names, key=str.lower)))
    assert set(section.replace(".", "").replace("\n", " ").split(", ")) == {*table.names, *table.compositions}
