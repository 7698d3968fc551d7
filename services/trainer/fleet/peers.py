"""The services that a run calls: the fleet of policy services, clients of the others, patience while one is away."""

from collections.abc import Callable, Mapping
from typing import Self

from rlhf.client.base import ServiceClient
from rlhf.client.patience import Patience
from rlhf.client.reference import ReferenceClient
from rlhf.client.reward import RewardClient
from rlhf.learning.ranks import ALONE, Ranks
from rlhf.learning.sample import TRAINING_REWARD
from rlhf.serving.calls import clean_name
from services.trainer.config.sections import ServicesConfig
from services.trainer.fleet.dispatch import Dispatcher
from services.trainer.fleet.fleet import Fleet
from services.trainer.fleet.metrics import FleetMetrics
from services.trainer.fleet.push import require_tokenizer
from services.trainer.fleet.replica import REMEDY


class Peers:
    """Clients of every service of a run; use as an async context manager."""

    def __init__(
        self,
        config: ServicesConfig,
        *,
        tokenizer_digest: str,
        report: Callable[[str], None],
        reward_targets: Mapping[str, str] | None = None,
        caller: str = "trainer",
        ranks: Ranks = ALONE,
        metrics: FleetMetrics | None = None,
    ) -> None:
        """Opens channels; nothing is called before check().

        Args:
            config: targets, deadlines and patience.
            tokenizer_digest: that of the tokenizer whose ids are sent.
            report: told, in a sentence, when a service goes away and when it is back; once for each absence.
            reward_targets: reward services by name; config.reward_target alone if None.
            caller: the name under which services know these calls, and report on these rewards, such as the run's.
            ranks: the processes of the run, of which the main one pushes weights.
            metrics: what is counted of the policy services; None counts for nobody.
        """
        targets = {TRAINING_REWARD: config.reward_target} if reward_targets is None else reward_targets
        self.config = config
        self.tokenizer_digest = tokenizer_digest
        self.caller = clean_name(caller)
        self.fleet = Fleet(
            config, tokenizer_digest=tokenizer_digest, report=report, caller=self.caller, ranks=ranks, metrics=metrics
        )
        """The policy services."""
        self.dispatcher = Dispatcher(self.fleet, config, rank=ranks.rank)
        """Gives them prompts."""
        self.rewards = {name: RewardClient(target, caller=self.caller) for name, target in targets.items()}
        self.reference = ReferenceClient(config.reference_target, caller=self.caller)
        self.reference_version = ""
        self.patience = Patience(
            deadline_seconds=config.score_deadline_seconds,
            wait_seconds=config.wait_for_services_seconds,
            item_tries=None,
            remedy=REMEDY,
            on_wait=self._note_absence,
            on_answer=self._note_return,
        )
        """With the services beside the policy."""
        self._report = report
        self._away: dict[ServiceClient, str] = {}

    @property
    def waiting_for(self) -> str:
        """Which services are away, in words; empty if none is."""
        return "; ".join(filter(None, (self.fleet.waiting_for, *self._away.values())))

    async def check(self) -> None:
        """Waits until a policy service and every other one answers, and learns what they serve.

        Raises: ConfigError if a tokenizer differs; NotReadyError if one stays away.
        """
        await self.fleet.start()
        for reward in self.rewards.values():
            model = await self.patience.ask(reward, reward.get_model)
            require_tokenizer(reward.name, model.tokenizer_digest, self.tokenizer_digest)
        reference = await self.patience.ask(self.reference, self.reference.get_model)
        require_tokenizer(self.reference.name, reference.tokenizer_digest, self.tokenizer_digest)
        self.reference_version = reference.reference_version

    async def close(self) -> None:
        """Closes all channels."""
        await self.fleet.close()
        for client in (*self.rewards.values(), self.reference):
            await client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _note_absence(self, client: ServiceClient, message: str) -> None:
        if client not in self._away:
            self._away[client] = message
            self._report(message)

    def _note_return(self, client: ServiceClient) -> None:
        if self._away.pop(client, None) is not None:
            self._report(f"{client.name} is back")
