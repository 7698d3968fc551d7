"""A reward server as one is written in an hour, for comparison: python bench/reward_baseline.py --help

The design of the server that OpenRLHF brings along (POST /get_reward with {"query": [...]}), written anew: FastAPI, an
async handler that tokenizes and runs the model itself, so that one request is one padded forward pass, the others wait
in the event loop, and nothing else is answered meanwhile.
"""

import argparse
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf.process import keep_freed_memory


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a sequence classifier of one label")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    keep_freed_memory()  # as our service does: it is not what is compared
    uvicorn.run(make_app(arguments.model), host="127.0.0.1", port=arguments.port, log_level="warning")


def make_app(path: str) -> FastAPI:
    """Returns the application, its model loaded."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.bfloat16).eval()
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/get_reward")
    async def get_reward(request: Request) -> dict[str, Any]:
        queries = (await request.json())["query"]
        inputs = tokenizer(queries, add_special_tokens=False, padding=True, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            rewards = model(**inputs).logits[:, 0].float().tolist()
        return {"rewards": rewards, "scores": rewards}

    return app


if __name__ == "__main__":
    main()
