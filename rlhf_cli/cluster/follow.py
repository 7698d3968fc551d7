"""Follows a run: why it waits, what it logs, and how it ends."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TypeVar

from rlhf_cli.cluster.connection import Cluster
from rlhf_cli.cluster.diagnosis import RunState, index_of, phase_of, trainer_started
from rlhf_cli.cluster.manifests import TRAINER, Manifest
from rlhf_cli.cluster.runs import RunLook, last_lines, look_at, pods_of
from rlhf_cli.errors import ClusterError, UnreachableError

T = TypeVar("T")

POLL_SECONDS = 2.0
PATIENCE_SECONDS = 300.0
ENDED: tuple[RunState, ...] = ("finished", "failed", "stopped", "stopping")


class Follower:
    """Shows a run until it ends."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        *,
        show_line: Callable[[str], None],
        note: Callable[[str], None],
        node_index: int = 0,
        poll_seconds: float = POLL_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """
        Args:
            show_line: takes every line of the trainer's log.
            note: takes what the cluster says of the run, a sentence at a time.
            node_index: whose log it is.
            patience_seconds: how long the cluster may be away.
        """
        self._cluster = cluster
        self._name = name
        self._show_line = show_line
        self._note = note
        self._node_index = node_index
        self._poll_seconds = poll_seconds
        self._patience_seconds = patience_seconds
        self._said: set[str] = set()
        self._shown: dict[str, str] = {}
        """The time stamp of the last line that was shown, by pod."""

    def follow(self) -> RunState:
        """Returns how the run ended; waits until then."""
        while True:
            # The run before its pods and logs, so that an ended run's are read to the end.
            look = self._patiently(look_at)
            self._tell(look)
            for pod in self._patiently(pods_of):
                if index_of(pod) == self._node_index and trainer_started(pod):
                    self._show_log(pod)
            if look.state in ENDED:
                return look.state
            time.sleep(self._poll_seconds)

    def _patiently(self, question: Callable[[Cluster, str], T]) -> T:
        """Returns the answer, however long the cluster is away. Raises: UnreachableError past our patience."""
        deadline = time.monotonic() + self._patience_seconds
        is_noted = False
        while True:
            try:
                return question(self._cluster, self._name)
            except UnreachableError as error:
                if time.monotonic() > deadline:
                    raise
                if not is_noted:
                    self._note(f"{error}; trying again")
                is_noted = True
            time.sleep(self._poll_seconds)

    def _tell(self, look: RunLook) -> None:
        """Notes what is new; of containers whose log is shown anyway, no log lines."""
        if look.state not in self._said:
            self._said = {look.state}  # what was wrong in another state may be wrong again
            self._note(f"run {look.name} is {look.state}")
        for problem in look.problems:
            key = f"{problem.pod} {problem.container} {problem.text}"
            if key not in self._said:
                self._said.add(key)
                lines = [] if problem.container == TRAINER else last_lines(self._cluster, problem)
                self._note("\n".join([problem.text, *(f"  {line}" for line in lines)]))

    def _show_log(self, pod: Manifest) -> None:
        """Shows what the pod has logged since the last time, and goes on until the log ends or the stream breaks."""
        name = pod["metadata"]["name"]
        shown = last = self._shown.get(name, "")
        if last == "all":
            return
        options = {"follow": "true", "timestamps": "true"}
        if shown:
            options["sinceTime"] = _second_before(shown)
        try:
            for line in self._cluster.log_lines(name, TRAINER, **options):
                stamp, _, text = line.partition(" ")
                if stamp > shown:
                    self._show_line(text)
                    last = stamp
        except ClusterError:  # the pod went away, or its node does not answer: the next look says what is the case
            return
        self._shown[name] = "all" if phase_of(pod) in ("Succeeded", "Failed") else last


def _second_before(stamp: str) -> str:
    """Returns a whole second before a stamp; the API takes no fractions."""
    # Nanoseconds are more than fromisoformat reads.
    second = datetime.fromisoformat(stamp[:19] + "+00:00") - timedelta(seconds=1)
    return second.strftime("%Y-%m-%dT%H:%M:%SZ")
