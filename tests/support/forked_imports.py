"""What is imported once, for all the processes that tests.support.forked forks."""

import transformers.models.llama.modeling_llama

import rlhf_cli.main
import services.policy.hf_engine
import services.trainer.runner
import services.trainer.server
import tests.support.forked

__all__ = ["rlhf_cli", "services", "tests", "transformers"]
