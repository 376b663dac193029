"""Does a policy look? Minimal pairs along the expert's drives, and what damaged cameras cost it in its own.

The expert drives a scenario without pictures; where `policies.probes` finds a pair, both versions of the last instants
are drawn, and the policy plans in both, its cameras as they are and, as a control, black. It is asked anew each time:
nothing of one version is remembered in the other.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from policies.blinded import Blinded
from policies.pairs import KINDS, driven_m, share_figures
from policies.probes import Probe, Probes, Version
from policies.protocol import NOTHING, Plan, Policy, Privileged
from policies.rollout import drive_episode, quiet_env
from policies.runs import Run, new_row, tried, write_json
from policies.town_expert import TownExpert
from sensors.clip import Clip
from sim.env import CameraEnv
from sim.report.pictures import captioned, clip_mosaic
from sim.scenarios import Scenario
from sim.scene import Moment

PAIRS_FILE = "pairs.json"
TILE_WIDTH_PX, JPEG_QUALITY = 320, 88
OUTCOMES = {True: "told apart", False: "not told apart"}


@dataclass(frozen=True)
class Answer:
    """What became of one pair; a line of RUN/pairs.json.

    versions, driven_m   of the two versions: in a word, and the length of the plan, m
    at_s, gap_m, speed_mps   in the episode; how far ahead of the front bumper what differs is; the ego's speed
    passed, blank_passed     whether the policy told the versions apart, and whether it did behind black cameras
    """

    kind: str
    scene: str
    at_s: float
    gap_m: float
    speed_mps: float
    versions: tuple[str, str]
    driven_m: tuple[float, float]
    passed: bool
    blank_passed: bool


@dataclass
class Album:
    """Pictures of a run's pairs: of each kind the first that was passed and the first that was not."""

    folder: Path
    shown: list[dict[str, str]] = field(default_factory=list)
    _has: set[tuple[str, bool]] = field(default_factory=set)

    def add(self, answer: Answer, clips: Sequence[Clip], plans: Sequence[Plan]) -> None:
        """Both versions with both plans, one above the other, if the run has none like it."""
        key = answer.kind, answer.passed
        if key in self._has:
            return
        self._has.add(key)
        rows = [
            captioned(
                clip_mosaic(clip, plan.xyyaw_in_ego[:, :2], TILE_WIDTH_PX), f"{words}: {driven:.1f} m in the plan"
            )
            for clip, plan, words, driven in zip(clips, plans, answer.versions, answer.driven_m, strict=True)
        ]
        name = f"pair-{answer.kind}-{'passed' if answer.passed else 'failed'}.jpg"
        picture = np.concatenate(rows)[..., ::-1]
        cv2.imwrite(str(self.folder / name), picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        words = f"{answer.kind}: {' against '.join(answer.versions)}, {OUTCOMES[answer.passed]} "
        words += f"({answer.scene} at {answer.at_s:.1f} s, {answer.gap_m:.0f} m ahead, {answer.speed_mps:.1f} m/s)"
        self.shown.append({"path": f"{self.folder.name}/{name}", "words": words})


class Questioner:
    """Drives as the town's expert, and asks another policy wherever a pair can be asked for.

    It is a policy without cameras: the pictures of the last instants are drawn when there is somebody to ask.

    probes: of a seed, what finds the instants.
    """

    name = TownExpert.name
    privileged = True
    needs_images = False
    probes: Callable[[int], Probes] = Probes

    def __init__(self, policy: Policy, env: CameraEnv, scene: str, album: Album):
        self._asked, self._control = policy, Blinded(policy, "blank")
        self._env, self._scene, self._album = env.unwrapped, scene, album
        self.clip_steps, self.image_size = policy.clip_steps, policy.image_size
        self.answers: list[Answer] = []
        self._expert = TownExpert()
        self.reset(0)

    def reset(self, seed: int) -> None:
        self._expert.reset(seed)
        self._probes, self._moments = self.probes(seed), deque[Moment](maxlen=self.clip_steps)
        self._begun_us: int | None = None

    def plan(self, clip: Clip, privileged: Privileged) -> Plan:
        self._begun_us = clip.now_us if self._begun_us is None else self._begun_us
        plan = self._expert.plan(clip, privileged)
        self._moments.append(self._env.moment())
        for probe in self._probes.at(privileged.world):
            self._ask(probe, clip)
        return plan

    def _ask(self, probe: Probe, clip: Clip) -> None:
        clips = [self._seen(clip, version) for version in probe.versions]
        plans, unseeing = ([fresh(policy, clip) for clip in clips] for policy in (self._asked, self._control))
        answer = Answer(
            kind=probe.kind,
            scene=self._scene,
            at_s=(clip.now_us - self._begun_us) * 1e-6,
            gap_m=probe.gap_m,
            speed_mps=clip.vehicle.speed_mps,
            versions=tuple(version.words for version in probe.versions),
            driven_m=tuple(driven_m(plan) for plan in plans),
            passed=probe.passed(*plans),
            blank_passed=probe.passed(*unseeing),
        )
        self.answers.append(answer)
        self._album.add(answer, clips, plans)

    def _seen(self, clip: Clip, version: Version) -> Clip:
        """The clip with the images of its steps drawn as this version has them; steps before the start stay masked."""
        images, mask = clip.images.copy(), clip.image_mask.copy()
        for back, moment in enumerate(reversed(self._moments), 1):
            images[-back], mask[-back] = self._env.draw(moment.drawn(version.otherwise)), True
        command, instruction = version.told(clip)
        return replace(clip, images=images, image_mask=mask, command=command, instruction=instruction)


Asking = TypeVar("Asking", bound=Questioner)


def fresh(policy: Policy, clip: Clip) -> Plan:
    """What a policy plans for a clip that is all it knows."""
    policy.reset(0)
    return policy.plan(clip, NOTHING).validate(policy.name)


def ask(
    run: Run,
    policy: Policy,
    scenarios: Sequence[Scenario],
    seconds: float | None = None,
    renderer: str = "auto",
    progress: bool = True,
) -> list[Answer]:
    """Ask a policy along the expert's drives of these scenarios. The answers are in RUN/pairs.json, its figures in
    `pairs` of the summary, and some pictures in `pictures`."""
    questioners = along(run, Questioner, policy, scenarios, seconds, renderer, progress)
    answers = [answer for questioner in questioners for answer in questioner.answers]
    run.summary["pairs"] = {policy.name: figures(answers)}
    run.save()
    return answers


def along(
    run: Run,
    ask_as: type[Asking],
    policy: Policy,
    scenarios: Sequence[Scenario],
    seconds: float | None,
    renderer: str,
    progress: bool,
) -> list[Asking]:
    """One drive of the expert's for each scenario, with its questioner. The answers so far are in RUN/pairs.json, some
    pictures in `pictures` of the summary."""
    questioners, album = [], Album(run.path / "media")
    bar = tqdm(scenarios, disable=not progress, unit="episode", desc="pairs", miniters=0, mininterval=1.0)
    answers: list[Answer] = []

    def tell(text: str) -> None:
        bar.set_postfix_str(f"{text}, {len(answers)} pairs before", refresh=False)
        bar.update(0)

    for scenario in bar:
        questioners += _ask_along(run, ask_as, policy, scenario, seconds, renderer, album, tell)
        answers = [answer for questioner in questioners for answer in questioner.answers]
        write_json(run.path / PAIRS_FILE, [asdict(answer) for answer in answers])
    run.summary["pictures"] = album.shown
    return questioners


def _ask_along(
    run: Run,
    ask_as: type[Asking],
    policy: Policy,
    scenario: Scenario,
    seconds: float | None,
    renderer: str,
    album: Album,
    tell: Callable[[str], None],
) -> list[Asking]:
    """One drive of the expert's, an episode of the run; one that fails has the answers it had until then."""
    row = new_row(f"{ask_as.name}-{scenario.name}".replace("/", "-"), ask_as.name, scenario.seed, scenario.name)
    questioners: list[Asking] = []
    with tried(run.path, row, 0) as episode:
        env = quiet_env(policy.image_size, seconds, scenario, renderer)
        try:
            questioners.append(ask_as(policy, env, scenario.name, album))
            episode.log = drive_episode(questioners[0], env, scenario, episode, tell)
        finally:
            env.close()
    run.add(row)
    return questioners


def figures(answers: Sequence[Answer], kinds: Sequence[str] = KINDS) -> dict[str, float]:
    """Flat: `pair.KIND` and, of the same policy behind black cameras, `blank.KIND`, each with its n and interval."""
    flat: dict[str, float] = {}
    for prefix, of in (("pair", "passed"), ("blank", "blank_passed")):
        for kind in kinds:
            flat |= share_figures(f"{prefix}.{kind}", [getattr(a, of) for a in answers if a.kind == kind])
    return flat


def not_asked(flat: dict[str, float]) -> list[str]:
    """Kinds for which no instant was found."""
    return [key.split(".")[1] for key, n in flat.items() if key.startswith("pair.") and key.endswith(".n") and not n]
