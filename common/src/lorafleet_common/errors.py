"""Errors that every program has; those of the Kubernetes client stand in `kube/errors.py`.

ConfigError     an option is unknown, missing or bad; the process does not start
"""


class ConfigError(Exception):
    """An option is unknown, missing or bad; `option` names it as the user wrote it."""

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"{option}: {problem}")
        self.option = option
        self.problem = problem
