"""Between text and token ids, with the tokenizer and chat template of a checkpoint."""

from pathlib import Path

from blake3 import blake3

from rlhf_services.models.loading import load_tokenizer, tokenizer_digest
from rlhf_services.reward.scorer import TextPair, TokenPair


class PairTokenizer:
    """The tokenizer of a directory, as scorers use it. Not for two threads at a time."""

    def __init__(self, path: str | Path) -> None:
        """Raises: ConfigError if the directory has no tokenizer."""
        self._tokenizer = load_tokenizer(path)
        self.digest = tokenizer_digest(self._tokenizer)
        self.vocab_size = len(self._tokenizer)
        template = self._tokenizer.chat_template or ""
        self.template_digest = blake3(str(template).encode()).hexdigest()

    def decode(self, ids: list[int]) -> str:
        """Returns the text, special tokens left out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def encode(self, pair: TextPair) -> TokenPair:
        """Returns the pair's ids: the prompt as a user's message up to where the answer begins, the completion ended.

        Without a chat template the prompt is tokenized as it stands. The completion gets the end-of-sequence id: a text
        is a finished answer, and reward models are trained on completions that have it.
        """
        tokenizer = self._tokenizer
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": pair.prompt}]
            prompt_ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        else:
            prompt_ids = tokenizer(pair.prompt)["input_ids"]
        completion_ids = tokenizer(pair.completion, add_special_tokens=False)["input_ids"]
        if tokenizer.eos_token_id is not None:
            completion_ids = [*completion_ids, tokenizer.eos_token_id]
        return TokenPair(list(prompt_ids), list(completion_ids))
