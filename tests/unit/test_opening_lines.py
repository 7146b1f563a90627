"""The folder of spoken opening lines: what it holds, for how long, and what happens when the disk is at fault."""

import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from backend.agent.voices.opening_lines import OpeningLines, Speech, Word

KEY, OTHER = "a" * 64, "b" * 64
SPEECH = Speech(sound=b"\1\2" * 5_000, rate=24_000, words=(Word(first=0, length=5, at_ms=0),))
PLENTY = 10_000_000


def some(kilobytes: int) -> Speech:
    """A speech of about this size on disk."""
    return Speech(sound=b"\0\1" * (kilobytes * 500), rate=24_000, words=SPEECH.words)


def used_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_what_was_kept_is_found_and_nothing_else(tmp_path: Path) -> None:
    lines = OpeningLines(tmp_path / "lines", PLENTY)
    assert lines.find(KEY) is None
    lines.keep(KEY, SPEECH)
    assert lines.find(KEY) == SPEECH
    assert lines.find(OTHER) is None


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        OpeningLines(tmp_path / "lines", PLENTY).keep(KEY, SPEECH)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "lines").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "lines" / KEY).stat().st_mode) == 0o600


def test_the_line_that_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    lines = OpeningLines(tmp_path, 100_000)
    for key in "123":
        lines.keep(key, some(30))
        os.utime(tmp_path / key, (int(key), int(key)))
    assert lines.find("1"), "which is a use of it"
    lines.keep("4", some(30))
    assert {path.name for path in tmp_path.iterdir()} == {"1", "3", "4"}
    lines.keep("5", some(60))
    assert {path.name for path in tmp_path.iterdir()} == {"4", "5"}
    assert used_bytes(tmp_path) <= 100_000


def test_a_line_that_is_larger_than_all_that_may_be_kept_is_not(tmp_path: Path) -> None:
    lines = OpeningLines(tmp_path, 20_000)
    lines.keep(KEY, some(15))
    lines.keep(OTHER, some(25))
    assert [path.name for path in tmp_path.iterdir()] == [KEY], "and none had to go for it"


@pytest.mark.parametrize("length", [0, 3, 8, 40, 44, 60, 5_000])
def test_a_file_that_was_cut_is_a_miss_and_goes(tmp_path: Path, length: int) -> None:
    lines = OpeningLines(tmp_path, PLENTY)
    lines.keep(KEY, SPEECH)
    os.truncate(tmp_path / KEY, length)
    assert lines.find(KEY) is None
    assert not (tmp_path / KEY).exists()


@pytest.mark.parametrize("place", [0, 9, 41, 50, 5_000, -1])
def test_a_file_with_one_wrong_byte_is_a_miss_and_goes(tmp_path: Path, place: int) -> None:
    lines = OpeningLines(tmp_path, PLENTY)
    lines.keep(KEY, SPEECH)
    content = bytearray((tmp_path / KEY).read_bytes())
    content[place] ^= 1
    (tmp_path / KEY).write_bytes(content)
    assert lines.find(KEY) is None
    assert not (tmp_path / KEY).exists()
    lines.keep(KEY, SPEECH)
    assert lines.find(KEY) == SPEECH


def test_a_full_disk_leaves_nothing_behind_and_harms_nobody(tmp_path: Path) -> None:
    lines = OpeningLines(tmp_path, PLENTY)
    lines.keep(OTHER, SPEECH)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, hard))  # what the kernel then says is what it says of a quota
    try:
        lines.keep(KEY, SPEECH)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert lines.find(KEY) is None
    assert [path.name for path in tmp_path.iterdir()] == [OTHER]


def test_a_folder_that_cannot_be_had_is_no_fault_of_the_call(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lines = OpeningLines(tmp_path / "file" / "lines", PLENTY)
    lines.keep(KEY, SPEECH)
    assert lines.find(KEY) is None


def test_half_a_file_of_a_process_that_died_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / f".{OTHER}").write_bytes(b"half")
    OpeningLines(tmp_path, PLENTY).keep(KEY, SPEECH)
    assert [path.name for path in tmp_path.iterdir()] == [KEY]


PROGRAM = """
import sys
from pathlib import Path
from backend.agent.voices.opening_lines import OpeningLines, Speech, Word
folder, mine = Path(sys.argv[1]), int(sys.argv[2])
lines = OpeningLines(folder, 60_000)
for turn in range(150):
    number = (turn * 7 + mine) % 8
    sound = bytes([number]) * (2_000 * (number + 1))
    lines.keep(str(number), Speech(sound=sound, rate=24_000, words=(Word(first=0, length=1, at_ms=number),)))
    other = (turn * 5 + mine * 3) % 8
    found = lines.find(str(other))
    assert found is None or found.sound == bytes([other]) * (2_000 * (other + 1))
"""


@pytest.mark.timeout(60)  # four fresh interpreters import Pipecat
def test_many_processes_share_the_folder_and_each_finds_whole_lines_within_the_bound(tmp_path: Path) -> None:
    commands = [[sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path), str(number)] for number in range(4)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for command in commands]
    said = [process.communicate(timeout=50)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, said
    assert not any(b"damaged" in words for words in said), "nobody sees half a file"
    assert used_bytes(tmp_path) <= 60_000


def test_a_line_is_not_waited_for_while_another_process_writes(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX);"
            "print('held', flush=True); sys.stdin.read()",
            str(tmp_path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    lines = OpeningLines(tmp_path, PLENTY)
    with holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        lines.keep(KEY, SPEECH)
        assert lines.find(KEY) is None
        holder.kill()
    lines.keep(KEY, SPEECH)
    assert lines.find(KEY) == SPEECH, "who dies gives the lock back"
