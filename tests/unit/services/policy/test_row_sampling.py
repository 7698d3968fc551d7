import math

import torch

from services.policy.engine import SampleParams
from services.policy.hf_engine import Row, pad_left, sample_next


def row(temperature: float, seed: int = 0, max_new_tokens: int = 5) -> Row:
    return Row([1], SampleParams(max_new_tokens=max_new_tokens, temperature=temperature, stop_ids=(2,), seed=seed))


def finish(rows: list[Row], num_steps: int, logits: torch.Tensor) -> list[tuple[list[int], list[float]]]:
    for step in range(num_steps):
        sample_next(rows, logits, policy_version=step)
        for each in rows:
            each.finish_if_ended()
    return [(each.done.result().completion_ids, each.done.result().logprobs) for each in rows]


def test_log_probabilities_are_those_of_the_distribution_after_temperature_and_greedy_ones_those_at_1():
    # Odds 1 : 3 : 0 at temperature 1; at 0.5 they are squared, 1 : 9 : 0.
    logits = torch.tensor([[0.0, math.log(3.0), -math.inf]]).repeat(2, 1)
    (greedy_ids, greedy), (sampled_ids, sampled) = finish([row(0.0), row(0.5)], 5, logits)
    assert greedy_ids == [1] * 5
    torch.testing.assert_close(torch.tensor(greedy), torch.full((5,), math.log(3 / 4)))
    expected = [math.log(0.9 if token == 1 else 0.1) for token in sampled_ids]
    torch.testing.assert_close(torch.tensor(sampled), torch.tensor(expected))


def test_a_rows_draws_depend_on_its_seed_alone_not_on_its_place_in_the_batch():
    logits = torch.zeros(1, 50)
    logits[0, 2] = -math.inf  # never the stop id
    alone = finish([row(1.0, seed=3)], 5, logits)[0][0]
    among = finish([row(1.0, seed=9), row(1.0, seed=3)], 5, logits.repeat(2, 1))
    assert among[1][0] == alone
    assert among[0][0] != alone


def test_a_stop_id_ends_the_row_and_each_token_keeps_the_version_that_drew_it():
    stopping = torch.tensor([[-math.inf, -math.inf, 0.0]])
    going_on = torch.tensor([[0.0, -math.inf, -math.inf]])
    one = row(1.0)
    sample_next([one], going_on, policy_version=4)
    one.finish_if_ended()
    assert not one.done.done()
    sample_next([one], stopping, policy_version=5)
    one.finish_if_ended()
    completion = one.done.result()
    assert completion.completion_ids == [0, 2]
    assert completion.policy_versions == [4, 5]
    assert completion.finish_reason == "stop"


def test_padding_goes_to_the_left_and_is_masked():
    ids, mask = pad_left([[7, 8, 9], [5]], torch.device("cpu"))
    assert ids.tolist() == [[7, 8, 9], [0, 0, 5]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
