"""submitit's executor, in its own module so that `launch.slurm --help` works without submitit."""

import submitit


class Executor(submitit.SlurmExecutor):
    """submitit's SLURM executor, which can also write its scripts where SLURM is missing."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def script(self, jobs: int) -> str:
        """Return the script that sbatch gets for this number of jobs."""
        array = {"map_count": jobs} if jobs > 1 else {}
        shown = Executor(self.folder)
        shown.parameters = {**self.parameters, **array}
        text: str = shown._make_submission_file_text(shown._submitit_command_str, "")
        return text
