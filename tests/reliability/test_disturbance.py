"""The disturbance script: five real rounds, and that it notices each kind of harm in a training that does some."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability import disturbance
from tests.reliability.disturbance import DAMAGES, Setting, damage_file, disturb

SCRIPT = Path(disturbance.__file__)

# Saves at every second of its updates, and does one thing wrong, which the harm names.
PRETENDED = """
import json, signal, sys, time
from pathlib import Path
from etils import epath
from experiments.training.manifest import damage, write_manifest

HARM, FOLDER = sys.argv[1], Path(sys.argv[2])
checkpoints, terminated = FOLDER / "checkpoints", []
checkpoints.mkdir(parents=True, exist_ok=True)
if HARM != "dies unsaved":
    signal.signal(signal.SIGTERM, lambda *_: terminated.append(True))


def save(step):
    new = checkpoints / f"{step}.tmp"
    for name in ("state", "loop"):
        (new / name).mkdir(parents=True, exist_ok=True)
        (new / name / "data").write_text(f"{name} {step}")
    write_manifest(epath.Path(new))
    if not (checkpoints / str(step)).exists():
        new.rename(checkpoints / str(step))


steps = sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
sound = steps if HARM == "trusts all" else [s for s in steps if damage(epath.Path(checkpoints / str(s))) is None]
start = max(sound, default=0)
for damaged in steps:
    if damaged > start:
        (checkpoints / str(damaged)).rename(checkpoints / f"{damaged}.{time.time_ns()}.damaged")
resumed = start > 0
if HARM == "begins again":
    start = 0
elif start:
    print(f"train: going on from {checkpoints} after {start} updates", flush=True)
if HARM == "crashes" and resumed:
    raise KeyError("a bug")
for step in range(start, STEPS):
    if terminated and step > start:
        if HARM != "leaves unsaved":
            save(step)
        print(f"train: SIGTERM, saved after {step} updates", flush=True)
        sys.exit(75)
    print("update", step, flush=True)
    time.sleep(0.003)
    if step % 2 == 1:
        save(step + 1)
    if HARM == "tears" and step % 2 == 1:
        (checkpoints / str(step + 1) / "loop" / "data").write_text("")
save(STEPS)
value = "resumed" if HARM == "differs" and resumed else "same"
print("end", json.dumps({"state/params": value}), flush=True)
""".replace("STEPS", str(disturbance.STEPS))


def pretended(folder: Path, harm: str) -> Setting:
    script = folder / "pretended.py"
    script.write_text(PRETENDED)
    trainings = folder / "trainings"
    trainings.mkdir()
    environment = {"PYTHONPATH": str(SCRIPT.parents[2])}
    return Setting([sys.executable, str(script), harm], environment, trainings, faults=())


@pytest.mark.slow
def test_three_rounds_lose_nothing_and_change_nothing():
    command = [sys.executable, str(SCRIPT), "--rounds", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("rounds 3, killed ") and ", lost 0, different 0; " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("none", ""),
        ("begins again", "lost: started after 0 updates, the newest whole checkpoint is "),
        ("crashes", "lost: status 1 "),
        ("differs", "different: state/params"),
        ("tears", "was left damaged (loop/data: 0 bytes, "),
        ("trusts all", "the newest whole checkpoint is "),
        ("dies unsaved", "lost: SIGTERM after "),
        ("leaves unsaved", "lost: SIGTERM after "),
    ],
)
def test_harm_is_noticed(tmp_path, capsys, harm, told):
    setting = pretended(tmp_path, harm)
    setting.undisturbed()
    for number in range(3 if harm == "none" else 20):
        counts = disturb(setting, range(number, number + 1), seed=3, verbose=True)
        said = capsys.readouterr().out
        assert counts.rounds == 1 and said.startswith(f"round {number}: ")
        if counts.lost + counts.different:
            break
    assert (counts.lost > 0) == (harm not in ("none", "differs")), said
    assert (counts.different > 0) == (harm == "differs"), said
    assert told in said, said


def test_a_training_that_differs_from_itself_tells_nothing(tmp_path):
    script = tmp_path / "clock.py"
    script.write_text('import time; print(\'end {"a": "%d"}\' % time.time_ns())')
    with pytest.raises(SystemExit, match="two undisturbed trainings differ in a"):
        Setting([sys.executable, str(script)], {}, tmp_path).undisturbed()


def test_each_kind_of_damage_changes_a_file(tmp_path):
    path, chance = tmp_path / "data", random.Random(0)
    for kind in DAMAGES[:-1]:
        for size in (1, 2, 999):
            content = chance.randbytes(size)
            path.write_bytes(content)
            damage_file(path, kind, chance)
            assert not path.exists() if kind == "deleted" else path.read_bytes() != content
