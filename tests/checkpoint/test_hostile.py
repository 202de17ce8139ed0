"""Files made to harm: none runs code, none writes outside, none takes memory that the file does not hold."""

import json
import pickle
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from made_checkpoints import (
    StorageClaim,
    TensorClaim,
    make_state,
    members_of,
    pickled,
    seal,
    whole,
    write_sealed,
    zipped,
)
from payloads import PROTO, call, live_payloads, quiet_payloads, value

from cvtrain.checkpoint import CheckpointError, inspect_checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint


def refusal(path):
    """Why `path` is refused, with and without copying its tensors; a sentence that names the file."""
    for read in (load_checkpoint, inspect_checkpoint):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in caught.value.rule
    return caught.value.rule


def num_bytes(value):
    """Bytes of all tensors in a nested state."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(num_bytes, items))


def stays_within_the_file(path):
    """True if each way of reading `path` refuses it, or gives no more than twice the bytes of the file."""
    for read in (load_checkpoint, inspect_checkpoint):
        try:
            state = read(path)
        except CheckpointError as error:
            assert str(path) in str(error)
        else:
            assert num_bytes(state) <= 2 * path.stat().st_size
            assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())  # reads each number
    return True


# ---------------------------------------------------------------------- code


def wrappings(payload):
    """A payload in each form that torch knows for a file, the last one right in all but the payload."""
    magic = b"".join(pickle.dumps(item, protocol=2) for item in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    key = pickle.dumps("extra", protocol=2)[2:-1]
    inside = pickled(whole())[:-1] + key + payload.removeprefix(PROTO)[:-1] + b"s."
    return {
        "pickle": payload,
        "legacy": magic + payload + pickle.dumps([], protocol=2),
        "zip": zipped(members_of(payload, {"0": bytes(8)})),
        "sealed zip": seal(zipped(members_of(payload, {"0": bytes(8)}))),
        "sealed zip with all the rest": seal(zipped(members_of(inside, {"0": bytes(8)}))),
    }


def test_the_payloads_are_live(tmp_path):
    """Each runs when pickle loads it: or the next test would prove nothing."""
    marker = tmp_path / "ran"
    payloads = live_payloads(marker)
    assert len(payloads) == 24
    for kind, payload in payloads.items():
        try:
            pickle.loads(payload)
        except RuntimeError:
            assert kind == "nested_torch_load"  # it ran, and was no tensor then
        assert marker.exists(), kind
        marker.rmdir()


def test_no_payload_runs(tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "last.pt"
    payloads = live_payloads(marker) | quiet_payloads(marker)
    assert len(payloads) == 41
    before = set(sys.modules)
    for kind, payload in payloads.items():
        for form, content in wrappings(payload).items():
            path.write_bytes(content)
            rule = refusal(path)
            assert not marker.exists(), (kind, form)
            if form.startswith("sealed"):
                # not by chance: it is what the pickle asks for that is refused
                refusals = ("holds more than", "cannot be read (", "is no checkpoint of cvtrain's")
                assert rule.startswith(refusals), (kind, rule)
    assert not {"webbrowser", "made_script"} & (set(sys.modules) - before)


def test_the_reason_names_what_the_pickle_asks_for(tmp_path):
    payloads = live_payloads(tmp_path / "ran")
    for kind, named in {"os_system": "os.system", "eval": "builtins.eval", "numpy_load": "numpy.load"}.items():
        path = write_sealed(tmp_path / "last.pt", payloads[kind])
        assert refusal(path) == f"holds more than tensors and plain values ({named})"


# ---------------------------------------------------------------------- claims


def tensors(**claims):
    return pickled(whole(model=claims))


STORAGE = StorageClaim("0", 4)
FALSE_CLAIMS = {
    "huge shape": TensorClaim(STORAGE, (10**6, 10**6), (10**6, 1)),
    "expanded": TensorClaim(STORAGE, (10**6, 4), (0, 1)),
    "expanded from one": TensorClaim(STORAGE, (10**12,), (0,)),
    "beyond the end": TensorClaim(STORAGE, (4,), (5,)),
    "offset": TensorClaim(STORAGE, (4,), (1,), offset=1),
    "smaller than the storage": TensorClaim(STORAGE, (2,), (1,)),
    "negative": TensorClaim(STORAGE, (-2, -2), (1, 1)),
    "negative stride": TensorClaim(STORAGE, (4,), (-1,)),
    "strides missing": TensorClaim(STORAGE, (2, 2), (1,)),
    "not whole": TensorClaim(STORAGE, (4.0,), (1,)),
    "true": TensorClaim(STORAGE, (True, 4), (4, 1)),
    "many dimensions": TensorClaim(STORAGE, (1,) * 10_000 + (4,), (1,) * 10_001),
    "overflow": TensorClaim(STORAGE, (2**62, 0), (1, 1)),
    "shape of another type": TensorClaim(STORAGE, [4], (1,)),
    "no storage": TensorClaim(None, (4,), (1,)),
    "huge storage": TensorClaim(StorageClaim("0", 10**12), (10**12,), (1,)),
    "negative storage": TensorClaim(StorageClaim("0", -4), (4,), (1,)),
    "wider type": TensorClaim(StorageClaim("0", 4, kind=torch.DoubleStorage), (4,), (1,)),
    "untyped": TensorClaim(StorageClaim("0", 16, kind=torch.UntypedStorage), (4,), (1,)),
    "missing storage": TensorClaim(StorageClaim("7", 4), (4,), (1,)),
    "path as key": TensorClaim(StorageClaim("../0", 4), (4,), (1,)),
    "number as key": TensorClaim(StorageClaim(0, 4), (4,), (1,)),
    "meta device": TensorClaim(StorageClaim("0", 4, device="meta"), (4,), (1,)),
    "other device": TensorClaim(StorageClaim("0", 4, device="cuda:0"), (4,), (1,)),
}


@pytest.mark.parametrize("kind", FALSE_CLAIMS)
def test_no_claim_takes_more_than_the_file_holds(tmp_path, kind):
    path = write_sealed(tmp_path / "last.pt", tensors(w=FALSE_CLAIMS[kind]), {"0": bytes(16)})
    assert stays_within_the_file(path)


@pytest.mark.parametrize("kind", ["huge shape", "expanded", "expanded from one", "beyond the end", "huge storage"])
def test_claims_of_more_than_the_file_are_refused(tmp_path, kind):
    refusal(write_sealed(tmp_path / "last.pt", tensors(w=FALSE_CLAIMS[kind]), {"0": bytes(16)}))


def test_the_claim_that_is_true_is_read(tmp_path):
    path = write_sealed(tmp_path / "last.pt", tensors(w=TensorClaim(STORAGE, (2, 2), (1, 2))), {"0": bytes(range(16))})
    assert load_checkpoint(path)["model"]["w"].stride() == (1, 2)


def test_one_storage_for_many_tensors(tmp_path):
    """Shared memory is small in the file, and large as soon as something copies its tensors."""
    storage = StorageClaim("0", 4000)
    claims = {str(index): TensorClaim(storage, (4000,), (1,)) for index in range(100)}
    rule = refusal(write_sealed(tmp_path / "last.pt", tensors(**claims), {"0": bytes(16000)}))
    assert rule.startswith("claims tensors of more than")


# ---------------------------------------------------------------------- archives

NAMES = [
    "../../outside",
    "/tmp/outside",
    "archive/../../outside",
    "archive/data/../../../outside",
    "archive\\..\\outside",
    "C:/outside",
    "archive/data/0/../1",
    "archive/data/",
    "archive//data/1",
    "archive/./data/1",
    "archive/data/1\0.txt",
    "archive/code/__init__.py",
    "archive/data/x",
    "other/data/1",
    "archive/data.pkl",  # a second one
    "~/outside",
    "archive/data/" + "1" * 300,
]


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_no_record_is_written_anywhere(tmp_path, name):
    # zipfile turns a backslash into a slash on some systems and cuts at a zero byte: the name is put in afterwards
    stand_in = "n" * len(name)
    content = zipped([*members_of(pickled(whole())), (stand_in, b"x")]).replace(stand_in.encode(), name.encode())
    path = tmp_path / "in" / "last.pt"
    path.parent.mkdir()
    path.write_bytes(seal(content))
    assert stays_within_the_file(path)
    assert [entry.name for entry in tmp_path.rglob("*")] == ["in", "last.pt"]


def test_compressed_members(tmp_path):
    path = tmp_path / "last.pt"
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path.write_bytes(seal(zipped(members_of(pickled(whole()), {"0": bytes(5000)}), compression=compression)))
        assert refusal(path) == "holds compressed records, which no checkpoint has"


def directory_changed(field, size, number):
    """A whole archive with one number of the first entry of its directory changed."""
    content = bytearray(zipped(members_of(pickled(whole()), {"0": bytes(16)})))
    entry = content.index(b"PK\1\2")
    content[entry + field : entry + field + size] = number.to_bytes(size, "little")
    return bytes(content)


def test_false_directories(tmp_path):
    path = tmp_path / "last.pt"
    good = zipped(members_of(pickled(whole()), {"0": bytes(16)}))
    start = struct.unpack("<L", good[-6:-2])[0]
    doubled = good[:-22] + good[start:-22] + good[-22:-12] + struct.pack("<LLH", 2 * (len(good) - 22 - start), start, 0)
    bad = {
        "size of a member": directory_changed(24, 4, 10**9),
        "both sizes of a member": directory_changed(20, 8, 10**9 * (2**32 + 1)),
        "place of a member": directory_changed(42, 4, 10**6),
        "encrypted": directory_changed(8, 2, 1),
        "checksum of a member": directory_changed(16, 4, 1),
        "something before": b"PK\3\4" + good,
        "every member twice": doubled,
        "no members": zipped([]),
        "no pickle": zipped([("archive/version", b"3\n")]),
        "size of the directory": good[:-10] + b"\xff\xff\xff\x7f" + good[-6:],
        "place of the directory": good[:-6] + b"\xff\xff\xff\x7f" + good[-2:],
        "false zip64 end": good[:-22] + b"PK\6\7" + struct.pack("<LQL", 0, 0, 1) + good[-22:],
        "wild zip64 end": good[:-22] + b"PK\6\7" + struct.pack("<LQL", 0, 2**63, 1) + good[-22:],
    }
    for kind, content in bad.items():
        path.write_bytes(seal(content))
        assert stays_within_the_file(path), kind


def test_overlapping_records_give_no_more_than_the_file(tmp_path):
    """Two records that share their bytes, the trick of bombs without compression."""
    content = bytearray(zipped(members_of(pickled(whole()), {"0": bytes(64), "1": bytes(64)})))
    last = content.rindex(b"PK\1\2")
    before = content.rindex(b"PK\1\2", 0, last)
    content[last + 42 : last + 46] = content[before + 42 : before + 46]
    (tmp_path / "last.pt").write_bytes(seal(bytes(content)))
    assert stays_within_the_file(tmp_path / "last.pt")


# ---------------------------------------------------------------------- memory

MEMORY_PROBE = '''
import json, pathlib, resource, sys, time
import torch
from cvtrain.checkpoint import CheckpointError, load_checkpoint
good, *paths = map(pathlib.Path, sys.argv[1:])
def peak():
    """MiB of memory at most so far."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
load_checkpoint(good)  # what reading takes once
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (600 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
answers = {}
for path in paths:
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, started = peak(), time.monotonic()
    try:
        load_checkpoint(path)
        rule = "loaded"
    except CheckpointError as error:
        rule = error.rule
    answers[path.stem] = [rule, peak() - before, time.monotonic() - started]
print(json.dumps(answers))
'''


def nested(opening, closing, depth):
    return PROTO + opening * depth + closing * (depth - 1) + b"."


def laughs(levels):
    """Lists of ten times the list below: 10^levels values in a few hundred bytes."""
    operations = b"](" + b"]q\0(" + b"K\1" * 10 + b"e"
    for number in range(1, levels):
        operations += b"]q" + bytes([number]) + b"(" + (b"h" + bytes([number - 1])) * 10 + b"e"
    return PROTO + operations + b"e."


def bombs():
    """Small files that ask for a lot of memory, each with a right checksum."""
    members = members_of(pickled(whole()), {"0": bytes(1 << 28)})
    zip_bomb = zipped(members, compression=zipfile.ZIP_DEFLATED, only="archive/data/0")
    pickles = {
        "bytearray": PROTO + call("builtins.bytearray", value(10**11)) + b".",
        "tensor": PROTO + call("torch.Tensor", value(10**11)) + b".",
        "untyped_storage": PROTO + call("torch.storage.UntypedStorage", value(10**11)) + b".",
        "empty_tensor_of_a_shape": PROTO + call("torch._utils._rebuild_meta_tensor_no_storage") + b".",
        "huge_memo_number": PROTO + b"]r" + b"\xff" * 4 + b".",
        "huge_text": PROTO + b"X" + struct.pack("<L", 2**32 - 1) + b"a.",
        "huge_bytes": PROTO + b"\x8e" + struct.pack("<Q", 2**40) + b"a.",
        "huge_frame": PROTO + b"\x95" + struct.pack("<Q", 2**40) + b"N.",
        "huge_number": PROTO + b"\x8b" + struct.pack("<l", 2**31 - 1) + b"1.",
        "deep_list": nested(b"]", b"a", 200_000),
        "deep_dict": PROTO + b"}" + b"K\1}" * 1000 + b"s" * 1000 + b".",
        "deep_tuple": PROTO + b")" + b"\x85" * 200_000 + b".",
        "laughs": laughs(9),
        "circle": PROTO + b"]q\0h\0a.",
        "circular_dict": PROTO + b"}q\0K\1h\0s.",
        "three_million_lists": PROTO + b"]" * 3_000_000 + b".",
        "three_million_marks": PROTO + b"(" * 3_000_000 + b".",
        "huge_pickle": PROTO + b"N" * (33 << 20),
        "huge_shape": tensors(w=TensorClaim(STORAGE, (10**6, 10**6), (0, 0))),
        "huge_storage": tensors(w=TensorClaim(StorageClaim("0", 2**40), (2**40,), (1,))),
    }
    files = {name: seal(zipped(members_of(content, {"0": bytes(16)}))) for name, content in pickles.items()}
    return files | {"zip_bomb": seal(zip_bomb)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_bombs_take_no_memory(tmp_path):
    """Under a limit of 600 MiB more than torch itself takes, each is refused at less than 300 MiB and 30 s."""
    save_checkpoint(tmp_path / "good.pt", make_state())
    paths = [tmp_path / "good.pt"]
    for name, content in bombs().items():
        paths.append(tmp_path / f"{name}.pt")
        paths[-1].write_bytes(content)
    command = [sys.executable, "-c", MEMORY_PROBE, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env={"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    answers = json.loads(result.stdout)
    assert len(answers) == 21
    for name, (rule, grown, seconds) in answers.items():
        assert rule != "loaded" and "memory" not in rule, (name, rule)
        assert grown < 300, (name, grown)
        assert seconds < 30, (name, seconds)


def test_hostile_newest_is_named_and_the_one_before_is_taken(tmp_path):
    save_checkpoint(tmp_path / "step_00000002.pt", make_state(2))
    write_sealed(tmp_path / "last.pt", live_payloads(tmp_path / "ran")["os_system"])
    found = latest_checkpoint(tmp_path)
    assert found is not None
    path, state, problems = found
    assert (path.name, state["position"]["step"]) == ("step_00000002.pt", 2)
    assert problems == [f"{tmp_path / 'last.pt'} holds more than tensors and plain values (os.system)"]
    assert not (tmp_path / "ran").exists()
