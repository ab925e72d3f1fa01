"""Adapters as hostile as they come: some have to be refused, some misbehave only when they are asked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from support.adapter_files import write_safetensors
from support.wild import wild_adapter

CONFIG, WEIGHTS, TEMPLATE = "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123456\n"


def _config(folder: Path, **changes: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _tensors(folder: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
    found = load_file(folder / WEIGHTS)
    save_file({name: np.ascontiguousarray(change(name, one)) for name, one in found.items()}, folder / WEIGHTS)


def _value(folder: Path, value: float, part: str) -> None:
    def spoiled(name: str, one: np.ndarray) -> np.ndarray:
        if part in name:
            one[-1, -1] = value
        return one

    _tensors(folder, spoiled)


def _many_tensors(folder: Path) -> None:
    header = {f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(100_000)}
    write_safetensors(folder / WEIGHTS, header)


def _high_rank(folder: Path) -> None:
    _config(folder, r=64)
    _tensors(folder, lambda name, one: np.repeat(one, 16, axis=0 if "lora_A" in name else 1))


def _pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(b"cposix\nsystem\n(S'touch /tmp/lorafleet-soak-was-here'\ntR.")


def _escape(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/etc/passwd")


def _template(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / TEMPLATE).write_text(text)


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
HOARD = "{% set ns = namespace(x='x' * 1000000) %}{% for a in range(99) %}{% set ns.x = ns.x * 10 %}{% endfor %}"
DEEP = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
LONG = "{% for a in range(3000) %}{{ 'y' * 20000 }}{% endfor %}"
POISON: dict[str, Callable[[Path], object]] = {
    "nan": lambda folder: _value(folder, float("nan"), "lora_B"),
    "inf": lambda folder: _value(folder, float("inf"), "lora_A"),
    "minus-inf": lambda folder: _value(folder, -float("inf"), "down_proj.lora_B"),
    "alpha-inf": lambda folder: _config(folder, lora_alpha=1e308),
    "alpha-nan": lambda folder: (folder / CONFIG).write_text(
        (folder / CONFIG).read_text().replace('"lora_alpha": 8', '"lora_alpha": NaN')
    ),
    "misshapen": lambda folder: _tensors(folder, lambda name, one: one[:, :-1] if "lora_A" in name else one),
    "narrow": lambda folder: _tensors(folder, lambda name, one: one[:-1] if "lora_A" in name else one),
    "high-rank": _high_rank,
    "rank-huge": lambda folder: (folder / CONFIG).write_text('{"peft_type": "LORA", "r": ' + "9" * 400 + "}"),
    "rank-patterns": lambda folder: _config(folder, rank_pattern={f"layer{n}": 1 for n in range(100_000)}),
    "slow-pattern": lambda folder: _config(folder, target_modules="(.*.*)*.*(.*.*)*x(a|a|.)*!"),
    "deep-config": lambda folder: (folder / CONFIG).write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "no-config": lambda folder: (folder / CONFIG).unlink(),
    "config-list": lambda folder: (folder / CONFIG).write_text("[]"),
    "config-binary": lambda folder: (folder / CONFIG).write_bytes(bytes(range(256)) * 64),
    "unknown-field": lambda folder: _config(folder, lora_of_the_future={"a": 1}),
    "other-kind": lambda folder: _config(folder, peft_type="IA3"),
    "pickle": _pickle,
    "lfs": lambda folder: (folder / WEIGHTS).write_text(LFS),
    "lfs-config": lambda folder: (folder / CONFIG).write_text(LFS),
    "web-page": lambda folder: (folder / WEIGHTS).write_text("<!doctype html><html>Not found</html>" * 10),
    "empty": lambda folder: (folder / WEIGHTS).write_bytes(b""),
    "zeros": lambda folder: (folder / WEIGHTS).write_bytes(bytes(100_000)),
    "truncated": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000]),
    "absurd-header": lambda folder: (folder / WEIGHTS).write_bytes((1 << 62).to_bytes(8, "little") + b"{}"),
    "offsets": lambda folder: write_safetensors(
        folder / WEIGHTS, {"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}}, b"0000"
    ),
    "many-tensors": _many_tensors,
    "escape": _escape,
    "template-malformed": _template("{% for message in messages %}{{ message"),
    "template-endless": _template(ENDLESS),
    "template-hoard": _template(HOARD),
    "template-deep": _template(DEEP),
    "tokenizer-config": lambda folder: (folder / "tokenizer_config.json").write_text('{"eos_token": ["a", {"b": 1}]}'),
    "generation-config": lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": "all"}'),
}
"""Name -> what is done to a good adapter; each has to be refused, and nothing else may happen."""
TRIGGER = "{% if 'now' in messages[-1]['content']|string %}"
CRAFTY: dict[str, str] = {
    "endless": f"{TRIGGER}{ENDLESS}{{% endif %}}{{{{ messages[-1]['content'] }}}}",
    "hoard": f"{TRIGGER}{HOARD}{{% endif %}}{{{{ messages[-1]['content'] }}}}",
    "deep": f"{TRIGGER}{DEEP}{{% endif %}}{{{{ messages[-1]['content'] }}}}",
    "long": f"{TRIGGER}{LONG}{{% endif %}}{{{{ messages[-1]['content'] }}}}",
    "raising": f"{TRIGGER}{{{{ raise_exception('no') }}}}{{% endif %}}{{{{ messages[-1]['content'] }}}}",
    "dividing": f"{TRIGGER}{{{{ 1 // 0 }}}}{{% endif %}}{{{{ messages[-1]['content'] }}}}",
    "silent": "{% for message in messages %}{{ message['role'] }}{% endfor %}",
    "snooping": "{{ messages[-1]['content'] }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
}
"""Name -> a chat template that is accepted: what it does wrong it does when it is asked."""
WILD = {"wild": 1e25, "wilder": 1e30, "wildest": 1e36}
"""Name -> factor of finite weights whose products are not finite."""


def write_poison(original: Path, volume: Path) -> list[str]:
    """Write a folder for each and return their names."""
    for name, spoil in POISON.items():
        shutil.copytree(original, volume / name)
        spoil(volume / name)
    return list(POISON)


def write_wild(original: Path, volume: Path) -> list[str]:
    """As `write_poison`."""
    for name, factor in WILD.items():
        wild_adapter(original, volume / name, factor=factor)
    return list(WILD)


def write_crafty(original: Path, volume: Path) -> list[str]:
    """As `write_poison`; all have weights of their own, so that each is another content."""
    for name, text in CRAFTY.items():
        shutil.copytree(original, volume / name)
        (volume / name / TEMPLATE).write_text(text)
    return list(CRAFTY)
