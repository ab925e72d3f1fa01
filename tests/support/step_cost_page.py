"""The tables of docs/step-cost.md; `PYTHONPATH=tests .venv/bin/python -m support.step_cost_page` writes them anew."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.absent_cuda import Work
from support.counted_step import DECODE, NUM_LAYERS, PROMPT, WITH_PROMPT, CountedRunner, Step, counted_runner

PAGE = Path(__file__).resolve().parents[2] / "docs" / "step-cost.md"
BEGIN, END = "<!-- counted: begin -->\n", "<!-- counted: end -->\n"
PHASES = ("tables", "embedding and head", "products", "norms", "rotary", "attention", "MLP", "LoRA", "sampling")
STEPS = {
    "decode": Step(),
    "decode, base only": Step(num_adapters=0),
    "a prompt of 256": Step(prompt_tokens=256, is_alone=True),
    "with a prompt of 300": Step(prompt_tokens=300),
    "with a prompt of 400": Step(prompt_tokens=400),
}
GRAPHS = {
    "decode": DECODE[0],
    "decode, base only": DECODE[1],
    "a prompt of 256": PROMPT,
    "with a prompt of 300": WITH_PROMPT,
}
Counted = Mapping[str, tuple[Work, Work | None]]
"""By step what it asks of the device, and what its graph holds where there is one."""
FEW, MORE = 2, 4
"""Numbers of layers that are counted: the others ask for the same again."""


def count(*, own_decoder: bool) -> Counted:
    """Return what each step of a model of NUM_LAYERS layers asks for, without its trace, counted of FEW and of MORE."""
    counted = []
    for num_layers in (FEW, MORE):
        with counted_runner(num_layers, own_decoder=own_decoder) as runner:
            counted.append(_count(runner))
    few, more = counted
    return {name: tuple(map(_with_all_layers, few[name], more[name])) for name in STEPS}  # type: ignore[misc]


def _count(runner: CountedRunner) -> Counted:
    graphs = {name: runner.captured[room] for name, room in GRAPHS.items()}
    return {name: (runner.step(step), graphs.get(name)) for name, step in STEPS.items()}


def _with_all_layers(few: Work | None, more: Work | None) -> Work | None:
    if few is None or more is None:
        return None
    operations = {one: _of_all(few.operations.count(one), more.operations.count(one)) for one in set(more.operations)}
    assert (few.waits, few.num_replays) == (more.waits, more.num_replays)
    return Work(
        operations=list(Counter(operations).elements()),
        num_views=_of_all(few.num_views, more.num_views),
        copies_in=list(map(_of_all, few.copies_in, more.copies_in)),
        copies_out=list(map(_of_all, few.copies_out, more.copies_out)),
        waits=more.waits,
        num_replays=more.num_replays,
    )


def _of_all(few: int, more: int) -> int:
    """Return how many it is with NUM_LAYERS layers; each layer adds the same number."""
    of_layer, rest = divmod(more - few, MORE - FEW)
    assert of_layer >= 0 == rest, f"{few} with {FEW} layers and {more} with {MORE}"
    return more + (NUM_LAYERS - MORE) * of_layer


def page_of(own: Counted, transformers: Counted) -> str:
    """Return what stands between the marks of the page."""
    heads = (("Our own decoder (`--decoder own`):", own), ("transformers' code:", transformers))
    return "\n".join(f"{head}\n\n{tables(counted)}" for head, counted in heads)


def tables(counted: Counted) -> str:
    """Return what is counted of some code, on the device and on the host."""
    names = list(counted)
    works = {name: [one for one in pair if one is not None] for name, pair in counted.items()}
    phases = {name: [work.by_phase() for work in some] for name, some in works.items()}
    assert {phase for some in phases.values() for one in some for phase in one} <= set(PHASES)
    rows = [[phase, *(str(sum(one.get(phase, 0) for one in phases[name])) for name in names)] for phase in PHASES]
    total = ["**on the device**", *(f"**{sum(len(work.operations) for work in works[name]):,}**" for name in names)]
    host = [
        ["operations that Python asks for", *(f"{len(pair[0].operations) + pair[0].num_replays:,}" for pair in counted.values())],
        ["views that Python makes", *(f"{pair[0].num_views:,}" for pair in counted.values())],
        ["copies to the device", *(_copies(pair[0].copies_in) for pair in counted.values())],
        ["copies from the device", *(_copies(pair[0].copies_out) for pair in counted.values())],
        ["waits before the next step is submitted", *(str(len(pair[0].waits)) for pair in counted.values())],
    ]  # fmt: skip
    return f"{_table(['operations', *names], [*rows, total])}\n{_table(['of the host', *names], host)}"


def with_tables(page: str, told: str) -> str:
    """Return the page with these tables."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}{told}{END}{rest.split(END)[1]}"


def _copies(sizes: Sequence[int]) -> str:
    return f"{len(sizes)} ({sum(sizes) / 1024:.1f} KiB)"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(), page_of(count(own_decoder=True), count(own_decoder=False))))
