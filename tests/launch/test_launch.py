"""The launchers, with commands of their schedulers that write down how they are called and answer from a list."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORDS = ("lightnet/causal_lm", "--preset", "paper", "--config.text.note", 'a "b" $c')
FAKE = """#!/usr/bin/env bash
printf '%s' "{name}" >> calls; printf '|%s' "$@" >> calls; printf '\\n' >> calls
for answers in "answers-$4" "answers-$3" answers; do
  if [[ -s $answers ]]; then
    IFS=' ' read -r status text < "$answers"
    sed -i 1d "$answers"
    [[ -n $text ]] && echo "$text"
    exit "$status"
  fi
done
exit 0
"""


@pytest.fixture
def launch(tmp_path):
    """Runs a launcher; `answers` has the exit status and the output of each call of a fake command."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name in ("srun", "scontrol", "gcloud", "xpk", "sleep", "git"):
        (commands / name).write_text(FAKE.format(name=name))
        (commands / name).chmod(0o755)

    def run(script, *words, answers=None, **environment):
        for name, lines in (answers or {}).items():
            (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        path = f"{commands}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(ROOT / "launch" / script), *words],
            cwd=tmp_path,
            env={"PATH": path, "HOME": str(tmp_path), "BASH_ENV": str(tmp_path / "cd"), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        file = tmp_path / "calls"
        calls = [line.split("|") for line in file.read_text().splitlines()] if file.exists() else []
        return done, calls

    (tmp_path / "cd").write_text(f"cd() {{ builtin cd {tmp_path}; }}\n")  # every launcher stays in this folder
    return run


@pytest.mark.parametrize("script", ["slurm.sh", "tpu_vm.sh", "xpk.sh", "gke.sh"])
def test_without_words_the_usage_is_told(launch, script):
    done, calls = launch(script)
    assert (done.returncode, done.stdout, calls) == (2, "", [])
    assert f"launch/{script}" in done.stderr and not done.stderr.startswith("#")


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (75, True)])
def test_slurm_queues_a_run_again_that_saved_and_left(launch, status, requeued):
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": "."}
    done, calls = launch("slurm.sh", *WORDS, answers={"answers": [status]}, **job)
    assert done.returncode == status
    program = [".venv/bin/python", "-m", "experiments", "run", *WORDS]
    assert calls[0] == ["srun", "--kill-on-bad-exit=1", "--wait=120", *program]
    assert calls[1:] == ([["scontrol", "requeue", "7"]] if requeued else [])


def test_slurm_is_for_sbatch(launch):
    done, calls = launch("slurm.sh", *WORDS)
    assert done.returncode == 2 and done.stderr.startswith("error: this script is for sbatch") and not calls


PLACE = {"PROJECT": "mine", "ZONE": "here", "TYPE": "v5p-16", "SOURCE": "the/source"}


def test_a_tpu_is_asked_for_lost_and_asked_for_again(launch):
    states = ["1", "0 WAITING_FOR_RESOURCES", "0 ACTIVE"]  # not there, then waited for
    states += ["0 SUSPENDED", "0 SUSPENDED", "1", "0 ACTIVE", "0 ACTIVE"]  # taken away, deleted, there again
    # Of ssh: install, run (lost with its hosts), install, run.
    done, calls = launch(
        "tpu_vm.sh", "name", *WORDS, answers={"answers-describe": states, "answers-ssh": [0, 255, 0, 3]}, **PLACE
    )
    assert done.returncode == 3, done.stderr
    verbs = [call[4] if call[3] == "queued-resources" else "ssh" for call in calls if call[0] == "gcloud"]
    tries = ["describe", "create", "describe", "describe", "ssh", "ssh", "describe", "describe", "delete"]
    assert verbs == [*tries, "describe", "create", "describe", "ssh", "ssh", "describe"]
    (install, first, _, second) = [call[-1] for call in calls if call[0] == "gcloud" and "ssh" in call]
    assert "git clone --quiet the/source" in install and "EXTRA=tpu" in install
    assert first == second
    assert first.startswith("cd lightnet-lab && LIGHTNET_PROCESSES=auto .venv/bin/python -m experiments run ")
    said = subprocess.run(
        ["bash", "-c", f"python() {{ printf '%s\\n' \"$@\"; }}; python {first.partition(' run ')[2]}"],
        capture_output=True,
        text=True,
    )
    assert said.stdout.splitlines() == list(WORDS)


def test_a_run_that_saved_and_left_goes_on_where_the_hosts_still_are(launch):
    done, calls = launch(
        "tpu_vm.sh",
        "name",
        *WORDS,
        answers={"answers-describe": ["0 ACTIVE"] * 3, "answers-ssh": [0, 75, 0, 0]},
        **PLACE,
    )
    assert done.returncode == 0 and sum("ssh" in call for call in calls) == 4


def test_xpk_gets_one_command(launch):
    done, calls = launch("xpk.sh", "name", *WORDS, CLUSTER="c", TYPE="v5p-16", SLICES="2")
    assert done.returncode == 0
    (call,) = calls
    assert call[:4] == ["xpk", "workload", "create", "--cluster"] and call[call.index("--num-slices") + 1] == "2"
    command = call[call.index("--command") + 1]
    assert command.startswith("python -m experiments run lightnet/causal_lm --preset paper ")
    said = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True)
    assert said.stdout.splitlines()[-5:] == list(WORDS)


def test_gke_gets_a_process_for_each_host(launch):
    pool = {"IMAGE": "registry/image", "ACCELERATOR": "tpu-v5p-slice", "TOPOLOGY": "4x4x8"}
    done, _ = launch("gke.sh", "name", *WORDS, SLICES="2", **pool)
    (job,) = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (2, 32, 32)
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "experiments", "run", *WORDS]
    assert container["resources"]["limits"]["google.com/tpu"] == 4


def test_every_launcher_can_be_started():
    assert all(os.access(script, os.X_OK) for script in (ROOT / "launch").glob("*.sh"))
