"""What a policy process imports before it loads its model; imported once, for all that are forked."""

import transformers.models.llama.modeling_llama

import services.policy.hf_engine

__all__ = ["services", "transformers"]
