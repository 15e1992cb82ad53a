r"""Command that submits an experiment to SLURM, requeued after a preemption or a crash.

    python -m launch.slurm --tasks_per_node=8 --gpus_per_node=8 --time=1-00:00:00 -- \
        experiments.convergence_22 --scale=imagenet

The experiment and its flags follow `--`; several tasks are several processes of one run. At SIGTERM
they save and end with status 75, and the job is requeued. SLURM sends SIGTERM when it preempts a
job and, as requested here, before the time limit; `scancel --signal=TERM JOB` does the same. After
a crash the job is requeued, too, unless it was requeued --max_restarts times before. It continues
from its last checkpoint.
A failed claim and an invalid flag, dataset or folder end it.

`--array=N` trains the runs of the experiment in N concurrent tasks of an array. One more job waits
for them, trains any run that is missing, draws the figures and judges the claims.
"""

import dataclasses
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from launch.statuses import FINAL, STOPPED
from prelu_jax import entry

# Status of a task whose experiment ended with a final failure. srun ends with the highest status of
# its tasks, so this one is above 128 + any signal, with which the other tasks may end.
_FAILED = 200
_PATIENCE = 60  # seconds for tasks to end by themselves after the first has ended

_NODES = flags.DEFINE_integer("nodes", 1, "Number of nodes.", lower_bound=1)
_TASKS = flags.DEFINE_integer("tasks_per_node", 1, "Processes per node.", lower_bound=1)
_GPUS = flags.DEFINE_integer(
    "gpus_per_node", None, "GPUs per node; several processes take one each.", lower_bound=1
)
_CPUS = flags.DEFINE_integer("cpus_per_task", None, "Cores per process.", lower_bound=1)
_TIME = flags.DEFINE_string("time", "1-00:00:00", "Time limit of one start, in sbatch's format.")
_WARNING = flags.DEFINE_integer(
    "warning", 120, "Seconds before the limit at which to save.", lower_bound=1
)
_PARTITION = flags.DEFINE_string("partition", None, "Partition of the cluster.")
_MEM = flags.DEFINE_string("mem", None, "Memory per node, in sbatch's format: 64GB.")
_SBATCH = flags.DEFINE_multi_string("sbatch", [], "Any other option, NAME=VALUE; repeatable.")
_SETUP = flags.DEFINE_multi_string("setup", [], "A line of shell before the tasks; repeatable.")
_ARRAY = flags.DEFINE_integer("array", None, "Number of concurrent parts.", lower_bound=2)
_RESTARTS = flags.DEFINE_integer(
    "max_restarts",
    10,
    "A crash ends a job that was requeued this often, preemptions included.",
    lower_bound=0,
)
_LOGS = flags.DEFINE_string("logs", "runs/slurm", "Folder of scripts and output.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print scripts and commands; submit nothing.")


@dataclasses.dataclass(frozen=True)
class Submission:
    """A job, or the jobs of an array, with one command per task: one call of sbatch."""

    commands: list[list[str]]
    parameters: dict[str, Any]

    def executor(self, folder: str, **more: Any) -> Any:
        """Return submitit's executor with these parameters and those in ``more``.

        Raises:
            SystemExit: submitit is not installed.
        """
        try:
            from launch.slurm_executor import Executor
        except ImportError as error:
            raise SystemExit(
                f"error: launch.slurm needs submitit: `pip install -e '.[launch]'` ({error})."
            ) from error
        executor = Executor(folder)
        executor.update_parameters(**self.parameters, **more)
        return executor


def task(command: Sequence[str]) -> None:
    """Run the experiment's process inside a SLURM task; SLURM also signals the child itself.

    Raises:
        SystemExit: the experiment failed; `_after` acts on the status.
    """
    status = subprocess.call(command)
    if status:
        failed = _FAILED if status in FINAL else status
        sys.exit(failed if failed > 0 else 128 - failed)


def plan(experiment: Sequence[str]) -> list[Submission]:
    """Return the submissions: one job, or an array and the job that waits for it."""
    several = _NODES.value * _TASKS.value > 1
    command = [sys.executable, "-m", *experiment, *(["--distributed"] if several else [])]
    whole = Submission([command], _parameters(experiment[0], _after("$SLURM_JOB_ID")))
    if not _ARRAY.value:
        return [whole]
    # The last task's own id is that of the whole array, which would requeue all tasks.
    after = _after("${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID")
    parts = [[*command, f"--part={i}/{_ARRAY.value}"] for i in range(_ARRAY.value)]
    return [Submission(parts, _parameters(experiment[0], after)), whole]


def _parameters(name: str, after: list[str]) -> dict[str, Any]:
    """Return the parameters of a submission for submitit."""
    cpus = [] if _CPUS.value is None else [f"--cpus-per-task={_CPUS.value}"]
    return {
        "job_name": name,
        "nodes": _NODES.value,
        "ntasks_per_node": _TASKS.value,
        "gpus_per_node": _GPUS.value,
        "cpus_per_task": _CPUS.value,
        "time": _TIME.value,
        "partition": _PARTITION.value,
        "mem": _MEM.value,
        "setup": _SETUP.value or None,
        "teardown": after,
        "stderr_to_stdout": True,
        # Tasks that have lost another one save and end by themselves.
        "srun_args": ["--kill-on-bad-exit=0", f"--wait={_PATIENCE}", *cpus],
        "additional_parameters": {
            **dict(option.split("=", 1) for option in _SBATCH.value),
            "requeue": True,
            "signal": f"TERM@{_WARNING.value}",  # submitit's USR2 would kill the experiment
        },
    }


def _after(job: str) -> list[str]:
    """Return the shell lines that run after the tasks and requeue the job or end it."""
    restarts = f"[ ${{SLURM_RESTART_COUNT:-0}} -lt {_RESTARTS.value} ]"
    return [
        "status=$?",
        "case $status in",
        "  0) ;;",
        f"  {_FAILED}) status=1 ;;",
        f"  {STOPPED}) scontrol requeue {job} ;;",
        f"  *) {restarts} && scontrol requeue {job} ;;",
        "esac",
        "exit $status",
    ]


def submit(submissions: Sequence[Submission], folder: str) -> list[str]:
    """Submit the jobs, each to wait for the one before; return their SLURM job numbers."""
    numbers: list[str] = []
    for submission in submissions:
        more = {"dependency": f"afterany:{numbers[-1]}"} if numbers else {}
        executor = submission.executor(folder, **more)
        jobs = executor.map_array(task, submission.commands)
        numbers.append(jobs[0].job_id.partition("_")[0])
    return numbers


def show(submissions: Sequence[Submission], folder: str) -> None:
    """Print the scripts and commands that would be submitted."""
    for i, submission in enumerate(submissions):
        more = {"dependency": "afterany:ARRAY"} if i else {}
        print(submission.executor(folder, **more).script(len(submission.commands)))
        print("# each task runs")
        for command in submission.commands:
            print(shlex.join(command))
        print()


def main(argv: list[str]) -> None:
    """Run the command; see the module."""
    experiment = argv[1:]
    if not experiment or experiment[0].startswith("-"):
        raise app.UsageError("Expected `--`, the module of an experiment and its flags.")
    if _GPUS.value and _NODES.value * _TASKS.value > 1 and _GPUS.value != _TASKS.value:
        raise app.UsageError(
            f"--gpus_per_node is {_GPUS.value}, expected --tasks_per_node, {_TASKS.value}: under "
            "SLURM each of several JAX processes takes one GPU."
        )
    for option in _SBATCH.value:
        if "=" not in option.strip("="):
            raise app.UsageError(f"--sbatch is {option!r}, expected NAME=VALUE, e.g. account=mine.")
    if _DRY_RUN.value:
        show(plan(experiment), _LOGS.value)
        return
    if not shutil.which("sbatch"):
        raise SystemExit(
            "error: sbatch is not on the PATH; submit from a login node, or try --dry_run."
        )
    numbers = submit(plan(experiment), _LOGS.value)
    print(f"Submitted {' and '.join(numbers)}; scripts and output in {_LOGS.value}.")


if __name__ == "__main__":
    with entry.command():
        main(entry.parse_flags())
