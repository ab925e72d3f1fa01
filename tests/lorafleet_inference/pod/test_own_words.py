"""What an adapter's folder says of texts holds for its requests alone."""

import json
import shutil
from pathlib import Path
from typing import Any

from support.pod import serve

USER: Any = [{"role": "user", "content": "one two"}]


def test_the_end_tokens_of_an_adapter_end_its_answers_alone(
    base_folder: Path, adapter_folders: dict[str, Path], tmp_path: Path
) -> None:
    mute = tmp_path / "mute"
    shutil.copytree(adapter_folders["red"], mute)
    vocab_size = json.loads((base_folder / "config.json").read_text())["vocab_size"]
    (mute / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(vocab_size))}))
    adapters = {"red": adapter_folders["red"], "mute": mute}
    with serve(base_folder, "--served-name=tiny", adapters=adapters) as pod, pod.openai() as client:
        for model, finish, most in (("mute", "stop", 0), ("red", "length", 4)):
            asked: Any = {"model": model, "max_tokens": 4, "temperature": 0, "extra_body": {"min_tokens": 0}}
            if model == "red":
                asked["logit_bias"] = {str(2): -100, str(1): -100}
            chat = client.chat.completions.create(messages=USER, **asked)
            text = client.completions.create(prompt="one two", **asked)
            for answer in (chat, text):
                assert answer.usage is not None
                assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == (finish, most)
        ignoring = client.completions.create(
            model="mute", prompt="one two", max_tokens=4, temperature=0, extra_body={"ignore_eos": True}
        )
        assert ignoring.choices[0].finish_reason == "length"
