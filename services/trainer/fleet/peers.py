"""The services that a run calls: their clients, patience while one is away, and the check that they belong together."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Self, TypeVar

from rlhf_services.clients.base import ServiceClient
from rlhf_services.clients.policy import PolicyClient, PolicyModel
from rlhf_services.clients.reference import ReferenceClient
from rlhf_services.clients.reward import RewardClient
from rlhf_services.clients.waiting import call_when_available
from rlhf_services.common.calls import clean_name
from rlhf_services.common.errors import ConfigError
from rlhf_services.trainer.config import ServicesConfig

T = TypeVar("T")

TRAINING_REWARD = "reward"
"""The name under which a run's own reward service is known; evaluation may use others beside it."""


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
    ) -> None:
        """Opens channels; nothing is called before check().

        Args:
            config: targets, deadlines and patience.
            tokenizer_digest: that of the tokenizer whose ids are sent.
            report: told, in a sentence, when a service goes away and when it is back; once for each absence.
            reward_targets: reward services by name; config.reward_target alone if None.
            caller: the name under which services know these calls, and report on these rewards, such as the run's.
        """
        targets = {TRAINING_REWARD: config.reward_target} if reward_targets is None else reward_targets
        self.config = config
        self.tokenizer_digest = tokenizer_digest
        self.caller = clean_name(caller)
        self.policies = [PolicyClient(target, caller=self.caller) for target in config.policy_targets]
        self.rewards = {name: RewardClient(target, caller=self.caller) for name, target in targets.items()}
        self.reference = ReferenceClient(config.reference_target, caller=self.caller)
        self.policy_models: list[PolicyModel] = []
        self.reference_version = ""
        self._report = report
        self._away: dict[ServiceClient, str] = {}

    @property
    def waiting_for(self) -> str:
        """Which services are away, in words; empty if none is."""
        return "; ".join(self._away.values())

    @property
    def max_prompts(self) -> int:
        """Most prompts that each of the policy services takes in one call."""
        return min(model.max_prompts for model in self.policy_models)

    async def call(self, client: ServiceClient, make_call: Callable[[], Awaitable[T]]) -> T:
        """Returns what the call returns, made again when the service is back if it was away or overloaded.

        Raises: NotReadyError once the patience is spent; other ServiceErrors at once.
        """

        def note_absence(message: str) -> None:
            if client not in self._away:
                self._away[client] = message
                self._report(message)

        result = await call_when_available(
            make_call, client=client, wait_seconds=self.config.wait_for_services_seconds, on_wait=note_absence
        )
        if self._away.pop(client, None) is not None:
            self._report(f"{client.service} at {client.target} is back")
        return result

    async def check(self) -> None:
        """Waits until every service answers, and learns what they serve. Raises: ConfigError if a tokenizer differs."""
        self.policy_models = []
        for policy in self.policies:
            model = await self.call(policy, policy.get_model)
            self._require_tokenizer(policy, model.tokenizer_digest)
            self.policy_models.append(model)
        for reward in self.rewards.values():
            self._require_tokenizer(reward, (await self.call(reward, reward.get_model)).tokenizer_digest)
        reference = await self.call(self.reference, self.reference.get_model)
        self._require_tokenizer(self.reference, reference.tokenizer_digest)
        self.reference_version = reference.reference_version

    async def close(self) -> None:
        """Closes all channels."""
        for client in (*self.policies, *self.rewards.values(), self.reference):
            await client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _require_tokenizer(self, client: ServiceClient, digest: str) -> None:
        if digest == self.tokenizer_digest:
            return
        theirs = f"tokenizer {digest[:12]}" if digest else "no tokenizer"
        raise ConfigError(
            f"{client.service} at {client.target} has {theirs}, the trained policy has tokenizer "
            f"{self.tokenizer_digest[:12]}: token ids would mean different things; start the service with the policy's "
            "model or tokenizer"
        )
