"""The demo's prompts, combined from hand-made parts: everyday short-writing requests, mostly about small troubles.

A small model answers them at length, so that there is room for a policy to become brief. Training and held-out prompts
share neither a subject nor a form of request. `python scripts/demo_prompts.py` rewrites the two committed
files; a test proves that they are in step with this one.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

DATA_FOLDER = Path(__file__).parents[1] / "rlhf_cli/demo/data"
FORMS_PER_TRAIN_SUBJECT = 6

TRAIN_FORMS = (
    "Write two sentences about {}.",
    "Write a short diary entry about {}.",
    "Write a text message to a friend about {}.",
    "Describe {} in one or two sentences.",
    "Tell me briefly about {}.",
    "Write the opening lines of a story about {}.",
    "Write a short note to a neighbor about {}.",
    "Write a few words on {} for a family newsletter.",
)
HELDOUT_FORMS = (
    "Write a postcard that mentions {}.",
    "Write a brief letter to a cousin about {}.",
    "In two sentences, say what {} is like.",
    "Write a short comment for a local paper about {}.",
)

TRAIN_SUBJECTS = {
    "weather": (
        "a rainy Monday morning",
        "the first frost in the garden",
        "a week without sunshine",
        "fog on the way to the station",
        "a hailstorm during lunch",
        "the heat in a small apartment",
    ),
    "travel": (
        "missing the last bus home",
        "a delayed flight to Denver",
        "a suitcase with a broken wheel",
        "sharing a train car with a school class",
        "getting lost in an old town",
        "a flat tire on a country road",
    ),
    "work": (
        "a meeting that ran too long",
        "the printer on the third floor",
        "the first day at a new office",
        "an email sent to the wrong person",
        "a night shift at the warehouse",
        "a desk next to the elevator",
    ),
    "school": (
        "a math test on a Friday",
        "forgetting the homework at home",
        "the cafeteria on fish day",
        "a substitute teacher in history class",
        "a group project with strangers",
        "the last row of the classroom",
    ),
    "cooking": (
        "a burnt pan of onions",
        "cooking soup for ten people",
        "a cake that did not rise",
        "running out of salt",
        "a pot of plain rice",
        "the smell of old cheese in the fridge",
    ),
    "chores": (
        "washing the windows of the house",
        "a pile of unfolded laundry",
        "cleaning the attic",
        "a clogged kitchen sink",
        "taking out the trash in the snow",
        "mowing the lawn for an uncle",
    ),
    "sport": (
        "losing a tennis match in the rain",
        "running a race at the back of the field",
        "sitting on the bench for a whole game",
        "a swimming lesson in cold water",
        "a sore knee after hiking",
        "a football team without a goalkeeper",
    ),
    "home": (
        "a noisy upstairs neighbor",
        "a power cut on Tuesday evening",
        "moving a sofa up the stairs",
        "a leak in the bathroom ceiling",
        "an empty living room",
        "a key that broke in the lock",
    ),
    "shopping": (
        "a long line at the post office",
        "shoes that turned out too small",
        "a supermarket just before closing time",
        "returning a broken toaster",
        "a lost parking ticket",
        "a market stall with bruised apples",
    ),
    "health": (
        "a cold in the middle of summer",
        "an hour in the dentist's waiting room",
        "sleeping badly before an exam",
        "a bandage on the left thumb",
        "forgetting to eat breakfast",
        "a pair of scratched glasses",
    ),
    "town": (
        "road work on the main street",
        "a closed library",
        "pigeons on the town square",
        "a bench in an empty park",
        "the old bridge by the mill",
        "a parade without an audience",
    ),
    "things": (
        "a phone with a cracked screen",
        "an umbrella left on the tram",
        "a clock that runs slow",
        "a letter that came back unopened",
        "a bicycle without a chain",
        "a radio that only plays static",
    ),
}
HELDOUT_SUBJECTS = (
    "a canceled boat trip",
    "a hotel room above the kitchen",
    "the wind on the hill behind the farm",
    "a chess game that ended in a draw",
    "waiting for a plumber all afternoon",
    "a haircut that came out too short",
    "a birthday spent at the airport",
    "a stray cat under the porch",
    "the queue in front of the museum",
    "a puzzle with a missing piece",
    "watering the plants of a colleague",
    "a slow computer at the town hall",
    "the only restaurant in the village",
    "a choir practice with three singers",
    "painting a fence in October",
    "a fishing trip without a catch",
)


def train_prompts() -> list[str]:
    """The training prompts, in their fixed order: each subject in six of the eight forms."""
    subjects = [subject for group in TRAIN_SUBJECTS.values() for subject in group]
    prompts = [
        TRAIN_FORMS[(index + step) % len(TRAIN_FORMS)].format(subject)
        for index, subject in enumerate(subjects)
        for step in range(FORMS_PER_TRAIN_SUBJECT)
    ]
    return _shuffled(prompts)


def heldout_prompts() -> list[str]:
    """The held-out prompts, in their fixed order: each held-out subject in each held-out form."""
    return _shuffled([form.format(subject) for subject in HELDOUT_SUBJECTS for form in HELDOUT_FORMS])


def as_jsonl(prompts: Sequence[str]) -> str:
    """One line {"prompt": ...} for each."""
    return "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)


def _shuffled(prompts: list[str]) -> list[str]:
    random.Random(0).shuffle(prompts)
    return prompts


if __name__ == "__main__":
    (DATA_FOLDER / "train.jsonl").write_text(as_jsonl(train_prompts()), encoding="utf-8")
    (DATA_FOLDER / "heldout.jsonl").write_text(as_jsonl(heldout_prompts()), encoding="utf-8")
