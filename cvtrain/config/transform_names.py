"""The transforms of torchvision, albumentations and kornia that a config may name, and why it may not name others.

The tables are literal so that a wrong name is known in half a second, without loading the libraries, and so that
each name in them is one that a test has built and run on uint8 images.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

# Our own item: the evaluation resize (`data.resize`), as the first step of a per-image list.
EVAL_RESIZE = "EvalResize"


@dataclass(frozen=True)
class TransformTable:
    """Names of one library.

    Args:
        library: its name.
        setting: how a config chooses it.
        names: transforms of one image.
        compositions: those that hold a list `transforms` of others.
        sizing: names that change an image's size on purpose: a list with one of them starts from the image as read.
        refused: name to remedy, for what the library has and a config may not name.
    """

    library: str
    setting: str
    names: tuple[str, ...]
    compositions: tuple[str, ...]
    sizing: tuple[str, ...]
    refused: Mapping[str, str]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _refuse(remedy: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), remedy)


_ON_DEVICE = "leave it out: images stay uint8 until the device, which normalises them by data.normalize"
_MIXING = "set augment.mixup_alpha or augment.cutmix_alpha: mixing happens per batch on the device"
_BOXES = "leave it out: it is for boxes, key points, masks or videos, and a classifier's images have none"
_CODE = "it needs a function, which a config cannot hold: wrap your Dataset instead (data=dataset data.target=...)"
_MANY_CROPS = "it makes several images of one: use RandomCrop or CenterCrop"

TORCHVISION = TransformTable(
    library="torchvision",
    setting="augment.library=torchvision",
    names=_words(
        """
        AugMix AutoAugment CenterCrop ColorJitter ElasticTransform GaussianBlur GaussianNoise Grayscale Identity JPEG
        Pad RGB RandAugment RandomAdjustSharpness RandomAffine RandomAutocontrast RandomChannelPermutation RandomCrop
        RandomEqualize RandomErasing RandomGrayscale RandomHorizontalFlip RandomInvert RandomPerspective
        RandomPhotometricDistort RandomPosterize RandomResize RandomResizedCrop RandomRotation RandomShortestSize
        RandomSolarize RandomVerticalFlip RandomZoomOut Resize ScaleJitter TrivialAugmentWide
        """
    ),
    compositions=("Compose", "RandomApply", "RandomChoice", "RandomOrder"),
    sizing=(
        "CenterCrop",
        "RandomCrop",
        "RandomResize",
        "RandomResizedCrop",
        "RandomShortestSize",
        "Resize",
        "ScaleJitter",
    ),
    refused={
        **_refuse(
            _ON_DEVICE,
            "Normalize LinearTransformation ToTensor ToDtype ToImage ToPILImage PILToTensor ToPureTensor "
            "ConvertImageDtype",
        ),
        **_refuse(_MIXING, "MixUp CutMix"),
        **_refuse(
            _BOXES,
            "RandomIoUCrop SanitizeBoundingBoxes ClampBoundingBoxes ConvertBoundingBoxFormat SetClampingMode "
            "ClampKeyPoints SanitizeKeyPoints UniformTemporalSubsample",
        ),
        **_refuse(_CODE, "Lambda"),
        **_refuse(_MANY_CROPS, "FiveCrop TenCrop"),
    },
)

_OTHER_IMAGES = "it needs other images beside the one at hand, which the loader does not pass"
_VOLUMES = "leave it out: it is for volumes"
_SPECTROGRAMS = "it is for spectrograms: HorizontalFlip and XYMasking do the same to images"

ALBUMENTATIONS = TransformTable(
    library="albumentations",
    setting="augment.library=albumentations",
    names=_words(
        """
        AdditiveNoise AdvancedBlur Affine AutoContrast Blur CLAHE CenterCrop ChannelDropout ChannelShuffle
        ChromaticAberration CoarseDropout ColorJitter Crop CropAndPad D4 Defocus Downscale ElasticTransform Emboss
        Equalize Erasing FancyPCA GaussNoise GaussianBlur GlassBlur GridDistortion GridDropout GridElasticDeform
        HEStain HorizontalFlip HueSaturationValue ISONoise Illumination ImageCompression InvertImg LongestMaxSize
        MedianBlur Morphological MotionBlur MultiplicativeNoise NoOp OpticalDistortion Pad PadIfNeeded Perspective
        PiecewiseAffine PixelDropout PlanckianJitter PlasmaBrightnessContrast PlasmaShadow Posterize RGBShift
        RandomBrightnessContrast RandomCrop RandomCropFromBorders RandomFog RandomGamma RandomGravel RandomGridShuffle
        RandomRain RandomResizedCrop RandomRotate90 RandomScale RandomShadow RandomSizedCrop RandomSnow RandomSunFlare
        RandomToneCurve Resize RingingOvershoot Rotate SafeRotate SaltAndPepper Sharpen ShiftScaleRotate ShotNoise
        SmallestMaxSize Solarize Spatter SquareSymmetry Superpixels ThinPlateSpline ToGray ToRGB ToSepia Transpose
        UnsharpMask VerticalFlip XYMasking ZoomBlur
        """
    ),
    compositions=("OneOf", "OneOrOther", "RandomOrder", "SelectiveChannelTransform", "Sequential", "SomeOf"),
    sizing=(
        "CenterCrop",
        "Crop",
        "LongestMaxSize",
        "PadIfNeeded",
        "RandomCrop",
        "RandomCropFromBorders",
        "RandomResizedCrop",
        "RandomScale",
        "RandomSizedCrop",
        "Resize",
        "SmallestMaxSize",
    ),
    refused={
        **_refuse(_ON_DEVICE, "Normalize ToFloat FromFloat ToTensorV2"),
        **_refuse(
            _BOXES,
            "AtLeastOneBBoxRandomCrop BBoxSafeRandomCrop RandomSizedBBoxSafeCrop RandomCropNearBBox "
            "CropNonEmptyMaskIfExists MaskDropout ConstrainedCoarseDropout",
        ),
        **_refuse(_OTHER_IMAGES, "FDA HistogramMatching PixelDistributionAdaptation Mosaic OverlayElements TextImage"),
        **_refuse(_VOLUMES, "CenterCrop3D CoarseDropout3D CubicSymmetry Pad3D PadIfNeeded3D RandomCrop3D ToTensor3D"),
        **_refuse(_SPECTROGRAMS, "TimeReverse TimeMasking FrequencyMasking"),
        **_refuse(_CODE, "Lambda"),
        **_refuse("the list itself is the composition; Sequential nests one in another", "Compose ReplayCompose"),
    },
)

KORNIA = TransformTable(
    library="kornia",
    setting="augment.batch_transforms",
    names=_words(
        """
        CenterCrop ColorJiggle ColorJitter PadTo RandomAffine RandomAutoContrast RandomBoxBlur RandomBrightness
        RandomChannelDropout RandomChannelShuffle RandomClahe RandomContrast RandomCrop RandomElasticTransform
        RandomEqualize RandomErasing RandomFisheye RandomGamma RandomGaussianBlur RandomGaussianIllumination
        RandomGaussianNoise RandomGrayscale RandomHorizontalFlip RandomHue RandomInvert RandomJPEG RandomJigsaw
        RandomLinearCornerIllumination RandomLinearIllumination RandomMedianBlur RandomMotionBlur RandomPerspective
        RandomPlanckianJitter RandomPlasmaBrightness RandomPlasmaContrast RandomPlasmaShadow RandomPosterize
        RandomRGBShift RandomRain RandomResizedCrop RandomRotation RandomRotation90 RandomSaltAndPepperNoise
        RandomSaturation RandomSharpness RandomShear RandomSnow RandomSolarize RandomThinPlateSpline RandomTranslate
        RandomVerticalFlip Resize
        """
    ),
    compositions=("ImageSequential", "PatchSequential"),
    sizing=("CenterCrop", "PadTo", "RandomCrop", "RandomResizedCrop", "Resize"),
    refused={
        **_refuse("leave it out: the device normalises batches by data.normalize", "Normalize Denormalize"),
        **_refuse(_MIXING, "RandomMixUpV2 RandomCutMixV2 RandomMosaic RandomTransplantation PatchMix"),
        **_refuse(_VOLUMES, "RandomTransplantation3D CenterCrop3D RandomAffine3D RandomCrop3D RandomDepthicalFlip3D"),
        **_refuse(
            _VOLUMES,
            "RandomEqualize3D RandomHorizontalFlip3D RandomMotionBlur3D RandomPerspective3D RandomRotation3D "
            "RandomVerticalFlip3D",
        ),
        **_refuse("it downloads a diffusion model; no other transform does", "RandomDissolving"),
        **_refuse("a batch has one size: use Resize", "LongestMaxSize SmallestMaxSize"),
        **_refuse("use ImageSequential: a batch here is images and nothing else", "AugmentationSequential"),
        **_refuse(_BOXES, "VideoSequential ManyToManyAugmentationDispather ManyToOneAugmentationDispather"),
    },
)

# Transforms of our own, for batches of small images: data/augment/batch_ops.py.
BATCH_OP_NAMES = ("Cutout", "Flip", "ShiftCrop")
# What a batch list may name.
BATCH_TRANSFORMS = replace(KORNIA, names=(*BATCH_OP_NAMES, *KORNIA.names))
