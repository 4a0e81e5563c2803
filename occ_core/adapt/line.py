"""The whole line, from bags to a network that runs: it reads as a table of contents."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from occ_core.adapt import cities as city
from occ_core.adapt import cut, deploy, label, learn
from occ_core.adapt.cities import Cities, cities_of, make_cities, seen_from
from occ_core.adapt.doctor import (
    LEAST_KEYFRAMES,
    Drive,
    bytes_of,
    examine,
    recipe_for,
    require_distinct,
    require_room,
    require_teacher,
    teacher_for,
)
from occ_core.adapt.judge import Change, change_of, judge
from occ_core.adapt.page import write_report_page
from occ_core.adapt.stage import Stages
from occ_core.errors import InvalidInput
from occ_core.files import content_key, read_json, write_atomically
from occ_core.models.checkpoint import load_record
from occ_core.parallel import progress_bar
from occ_core.teachers.names import is_network

OnProgress = Callable[[str], None]
STAGES = 10  # and `masks` of bags, `cities` and their labels beside bags, `replay` where ROS 2 is
# Rough, of one camera's image on a core: a label by maps that are there (200 labels of six images took two processes
# 49 s, benchmarks/labels.md), an answer with reading and scoring, in three judgements; and what does not grow.
LABEL_S, ANSWER_S, OTHER_S = 0.1, 0.1, 120.0
CITY_S, RENDER_S = 2.0, 0.5  # of a core: a city, and an image of it (64 cities of four cameras took 246 s)
INT8_LOSS = 1.0  # points that int8 may score less than fp32


@dataclass(frozen=True)
class Plan:
    """What will be done, once the recordings are found to do.

    Attributes:
        drives: what is learned from; where there are none, `cities` are, else beside them.
        teacher, recipe: chosen by what the recordings have.
        bytes_needed: on the disk of `out`, about.
    """

    drives: tuple[Drive, ...]
    out: Path
    teacher: str
    recipe: str
    hours: float
    steps: int | None
    start: Path
    weights: Path | None
    threads: int
    bytes_needed: int
    cities: Cities | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """What makes an adaption this one; another one needs another folder."""
        return {
            **({"bags": {drive.scene: drive.key for drive in self.drives}} if self.drives else {}),
            **({} if self.cities is None else self.cities.asked),
            "teacher": self.teacher,
            "recipe": self.recipe,
            "hours": self.hours,
            "steps": self.steps,
            "start": content_key([self.start, self.start.with_suffix(".json")]),
        }

    def lines(self) -> list[str]:
        """For people: what there is, what will happen, and how long it takes."""
        keyframes = sum(len(drive.keyframes_ns) for drive in self.drives)
        images = sum(len(drive.keyframes_ns) * len(drive.cameras) for drive in self.drives)
        kept = sum(len(cut.cut(len(drive.keyframes_ns)).judge) for drive in self.drives)
        made_s, what = 0.0, [line for drive in self.drives for line in _about(drive)]
        if self.cities is not None:
            counts, names = self.cities.counts, self.cities.rig.names
            rendered = sum(counts.values()) - (counts["judge"] if self.drives else 0)
            keyframes, kept = keyframes + rendered, kept if self.drives else counts["judge"]
            images += rendered * len(names)
            made_s = rendered * (CITY_S + len(names) * RENDER_S) / self.threads
            what.append(
                f"{rendered} simulated cities of one keyframe, seen by {len(names)} cameras ({', '.join(names)})"
            )
        labels = f"recipe {self.recipe}, teacher {self.teacher}"
        labels += ", whose networks take what they take" if is_network(self.teacher) else ""
        minutes = (made_s + images * (LABEL_S + 3 * cut.JUDGE_SHARE * ANSWER_S) + OTHER_S) / 60
        trained = f"{self.steps} steps" if self.steps else f"{self.hours:g} h"
        return [
            *what,
            f"labels of {keyframes} keyframes: {labels}; {kept} of them only judge",
            f"training from {self.start.stem}: {trained}; all else roughly {minutes:.0f} min",
            f"disk: about {self.bytes_needed / 1e9:.1f} GB in {self.out}",
        ]


def _about(drive: Drive) -> list[str]:
    lines = [drive.line(), *(f"{drive.scene}: left out: {line}" for line in drive.left_out)]
    if len(drive.keyframes_ns) < LEAST_KEYFRAMES:
        lines.append(f"{drive.scene}: too short to tell what adapting gains: its last keyframe alone judges")
    return lines


def plan(
    bags: Sequence[Path],
    out: Path,
    start: Path,
    teacher: str | None = None,
    hours: float = 2.0,
    steps: int | None = None,
    weights: Path | None = None,
    threads: int = 2,
    short: bool = False,
    cities: int = 0,
    seed: int = 1,
) -> Plan:
    """Look at everything that could stop the line later, in seconds.

    Args:
        short: as of `examine`.
        cities: how many simulated ones to learn from beside the bags, and their `seed`; as of `cities_of`.

    Raises:
        InvalidInput, MissingInput, CannotWrite, ...: in one line, why it cannot be done.
    """
    _require_start(hours, start)
    drives = [examine(bag, short) for bag in bags]
    require_distinct(drives)
    name = teacher_for(teacher, all(drive.lidar for drive in drives))
    require_teacher(name, drives, weights)
    sizes = [bytes_of(len(drive.keyframes_ns), len(drive.cameras), is_network(name)) for drive in drives]
    needed = require_room(out, sum(sizes) + bytes_of(cities, len(drives[0].cameras)))
    beside = _cities_of_bag(drives[0].bag, cities, seed) if cities else None
    found = Plan(tuple(drives), out, name, recipe_for(name)[0], hours, steps, start, weights, threads, needed, beside)
    _require_same(out / "adapt.json", found.asked)
    return found


def _cities_of_bag(bag: Path, count: int, seed: int) -> Cities:
    try:
        return cities_of(bag, count, seed)
    except InvalidInput as error:
        raise InvalidInput(f"{error}; --cities 0 learns from the bags alone") from error


def plan_of_cities(
    rig: Path,
    out: Path,
    start: Path,
    count: int,
    seed: int,
    hours: float = 2.0,
    steps: int | None = None,
    threads: int = 2,
) -> Plan:
    """As `plan`, without a recording: for a rig file, or the rig of a recording, as of `cities_of`.

    Raises:
        InvalidInput, MissingInput, CannotWrite, ...: in one line, why it cannot be done.
    """
    _require_start(hours, start)
    cities = cities_of(rig, count, seed)
    needed = require_room(out, bytes_of(sum(cities.counts.values()), len(cities.rig)))
    recipe = recipe_for(city.TEACHER)[0]
    found = Plan((), out, city.TEACHER, recipe, hours, steps, start, None, threads, needed, cities)
    _require_same(out / "adapt.json", found.asked)
    return found


def _require_start(hours: float, start: Path) -> None:
    if not 0 < hours <= 1000:
        raise InvalidInput(f"hours must be above 0 and at most 1000, got {hours:g}")
    record = load_record(start)
    if record["model"]["kind"] != "easyocc-nano":
        raise InvalidInput(f"{start}: holds a model of kind '{record['model']['kind']}', only easyocc-nano is adapted")


def _require_same(path: Path, asked: dict[str, Any]) -> None:
    if path.is_file() and (was := read_json(path)) != asked:
        name = next(key for key in {**asked, **was} if was.get(key) != asked.get(key))
        raise InvalidInput(
            f"{path.parent}: holds an adaption with another '{name}' ({was.get(name)}, asked for {asked.get(name)}): "
            "choose another folder"
        )


def run(
    plan: Plan, on_progress: OnProgress, replay: Callable[[Path, Path], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """All stages; those that are done already cost nothing.

    Args:
        on_progress: is given a line when a stage begins and ends.
        replay: plays a stretch at the node of OUT/node.yaml, and returns what it counted; None: nobody can.

    Returns:
        what OUT/report.json says.
    """
    out, threads = plan.out, plan.threads
    _write(out / "adapt.json", plan.asked)
    more = (1 + 2 * (plan.cities is not None) + (replay is not None)) if plan.drives else 0
    stages = _ReportedStages(Stages(out, plan.asked), on_progress, STAGES + more)
    parts, masks = _recordings(plan, stages)
    learned, fitted, judged = ([out / folder for folder in parts[part]] for part in cut.PARTS)
    taught = [*learned, *fitted]
    labels = stages.once(
        "labels", lambda: label.make_all([*taught, *judged], len(taught), plan.teacher, out / "maps", plan.weights)
    )
    beside = _beside(plan, stages, learned[0])
    learned_from, fitted_on = [*learned, *beside["learn"]], [*fitted, *beside["fit"]]

    def config(steps: int) -> Any:
        return learn.run_config(plan.start, learned_from, fitted_on, out / "cache", steps, threads)

    size = stages.once("size", lambda: _sized(plan, config(learn.PROBE_STEPS)))
    on_progress(f"training takes {size['steps']} steps" + (f" of {size['step_s']:.2f} s" if "step_s" in size else ""))
    trained = stages.once("train", lambda: learn.learn(config(size["steps"]), out))
    adapted = out / trained["checkpoint"]

    def scored(model: Path, name: str) -> dict[str, Any]:
        return shown("keyframes", partial(judge, model, judged, out / "judged" / name, threads=threads))

    before = stages.once("before", lambda: scored(plan.start, "before"))
    after = stages.once("after", lambda: scored(adapted, "after"))
    change = change_of(before["summary"], after["summary"])
    better = change is None or change.lost <= 0
    chosen, standing = (adapted, after) if better else (plan.start, before)
    files = stages.once("export", lambda: deploy.export_all(chosen, out, learned[0]))
    models = {precision: out / name for precision, name in files.items()}
    int8 = stages.once("int8", lambda: scored(models["int8"], "int8"))
    loss = change_of(standing["summary"], int8["summary"])
    speed = stages.once("speed", lambda: deploy.compare(chosen, models, judged[0], threads))
    row = speed[runs := deploy.fastest(speed, loss is not None and loss.lost <= INT8_LOSS)]
    model = chosen if row["backend"] == "torch" else models[row["precision"]]
    node = stages.once("node", lambda: _node(plan, judged[-1], model, row["backend"]))
    report = {
        "asked": plan.asked, "masks": masks, "labels": labels, "size": size, "trained": trained, "before": before,
        "after": after, "better": better, "why": _why(change, better), "checkpoint": str(chosen), "int8": int8,
        "speed": speed, "runs": runs, "node": node,
    }  # fmt: skip
    _write(out / "report.json", report)
    if replay is not None and plan.drives:
        report["replay"] = stages.once("replay", lambda: replay(out / "node.yaml", judged[-1]))
        _write(out / "report.json", report)
    on_progress(f"report: {write_report_page(out, judged, report)}")
    return report


def _recordings(plan: Plan, stages: _ReportedStages) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Folders in `plan.out` of each part, cut from the drives or rendered; what of the images shows the robot."""
    if not plan.drives:
        cities = cast(Cities, plan.cities)
        return stages.once("cities", lambda: make_cities(plan.out, cities, plan.threads)), {}
    parts = stages.once("cut", lambda: cut.write_cut(plan.out, plan.drives))
    masks = stages.once("masks", lambda: shown("keyframes", partial(label.give_masks, plan.out, plan.drives)))
    return parts, masks


def _beside(plan: Plan, stages: _ReportedStages, learned: Path) -> dict[str, list[Path]]:
    """Labelled cities to learn from beside the drives, and others to fit on, as the cameras of `learned` see them; none
    if none are asked for. On what it has learned from, a network is surer than elsewhere: what is fitted there is
    too strict."""
    if plan.cities is None or not plan.drives:
        return {"learn": [], "fit": []}
    cities = seen_from(plan.cities, learned)
    made = stages.once("cities", lambda: make_cities(plan.out, cities, plan.threads, ("learn", "fit")))
    folders = {part: [plan.out / folder for folder in names] for part, names in made.items()}
    every = [*folders["learn"], *folders["fit"]]
    stages.once("city labels", lambda: label.make_all(every, len(every), city.TEACHER, plan.out / "maps", None))
    return folders


def _node(plan: Plan, judged: Path, model: Path, backend: str) -> dict[str, str]:
    if plan.drives:
        return deploy.write_node_of(plan.out, judged, model, backend, plan.threads)
    cities = cast(Cities, plan.cities)
    return deploy.write_node(plan.out, cities.rig, cities.topics, model, backend, plan.threads)


def _why(change: Change | None, better: bool) -> str:
    if change is None:
        return "nothing to judge by: the adapted network is taken unjudged"
    return str(change) if better else f"adapting made it worse; the old weights stay ({change})"


def _write(path: Path, record: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def shown(what: str, work: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """What `work(on_progress=...)` returns, with a bar that says what is done and the time left."""
    with progress_bar(True) as progress:
        bar = progress.add_task(what, total=None)
        return work(on_progress=lambda done, total: progress.update(bar, completed=done, total=total))


def _sized(plan: Plan, config: Any) -> dict[str, Any]:
    if plan.steps is not None:
        return {"steps": plan.steps}
    step_s = learn.measured_step_s(config, plan.out / "probe")
    return {"steps": learn.steps_for(plan.hours, step_s), "step_s": round(step_s, 4)}


class _ReportedStages:
    """Stages that say when they begin and how long they took."""

    def __init__(self, stages: Stages, on_progress: OnProgress, total: int) -> None:
        self._stages, self._on_progress = stages, on_progress
        self._number, self._total = 0, total

    def once(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        self._number += 1
        title, began = f"{self._number:>2}/{self._total} {name}", time.monotonic()
        if self._stages.is_done(name):
            self._on_progress(f"{title}: done before")
            return self._stages.once(name, work)
        self._on_progress(f"{title}: begins")
        result = self._stages.once(name, work)
        self._on_progress(f"{title}: {time.monotonic() - began:.0f} s")
        return result
