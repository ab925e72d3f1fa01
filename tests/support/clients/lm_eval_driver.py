"""Cases of lm_eval: what its `local-completions` asks for, as tasks have it, and a task of its own from beginning to end.

The environment names the folder with the tokenizer (`LORAFLEET_TEST_TOKENIZER`).
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import driving
from driving import case
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager
from lm_eval_data import PAIRS, QUESTIONS

TASK = """
task: mine
dataset_path: json
dataset_kwargs:
  data_files: {test: DATA}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""


def model(url: str, name: str, **fields: Any) -> LocalCompletionsAPI:
    """As its command line makes it."""
    given = {"tokenizer": os.environ["LORAFLEET_TEST_TOKENIZER"], "max_length": 256, "max_retries": 1, **fields}
    return LocalCompletionsAPI(base_url=f"{url}/v1/completions", model=name, **given)


def likelihoods(url: str, name: str, **fields: Any) -> list[tuple[float, bool]]:
    asked = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(PAIRS)]
    return list(model(url, name, **fields).loglikelihood(asked, disable_tqdm=True))


@case
def loglikelihood_of_the_base(url: str) -> Any:
    return likelihoods(url, "tiny")


@case
def loglikelihood_of_an_adapter(url: str) -> Any:
    return likelihoods(url, "red")


@case
def loglikelihood_in_batches(url: str) -> Any:
    return likelihoods(url, "red", batch_size=3)


@case
def loglikelihood_at_once(url: str) -> Any:
    return likelihoods(url, "red", num_concurrent=4)


@case
def loglikelihood_rolling(url: str) -> Any:
    asked = [Instance("loglikelihood_rolling", {}, ("The quick brown fox jumps over the lazy dog",), 0)]
    return list(model(url, "red").loglikelihood_rolling(asked, disable_tqdm=True))


@case
def generate_until(url: str) -> Any:
    wanted = {"until": ["zz"], "max_gen_toks": 8, "do_sample": False}
    asked = [Instance("generate_until", {}, ("one two three", wanted), 0)]
    return list(model(url, "red").generate_until(asked, disable_tqdm=True))


@case
def a_task(url: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        data.write_text("".join(f"{json.dumps(question)}\n" for question in QUESTIONS))
        (Path(folder) / "mine.yaml").write_text(TASK.replace("DATA", str(data)))
        done = simple_evaluate(
            model(url, "red"),
            tasks=["mine"],
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            bootstrap_iters=0,
        )
    samples = done["samples"]["mine"]
    return {
        "acc": done["results"]["mine"]["acc,none"],
        "likelihoods": [[float(one[0]) for one in sample["filtered_resps"]] for sample in samples],
    }


@case
def no_such_model(url: str) -> Any:
    return likelihoods(url, "nobody")


if __name__ == "__main__":
    driving.main()
