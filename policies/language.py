"""Does a policy do as it is told, and does it know why it does what it does?

Minimal pairs of what is said are asked along the expert's drives as those of `policies.vision` are, and so are reasons,
of moments that might be there (`policies.imagine`). Then the policy drives itself, told as always, or by words or
command alone, or nothing: the drives' logs tell which way it left junctions. What it says is right if action and cause
are those of the expert in its place.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from policies.imagine import drawn, expected, imagine, looked_back
from policies.pairs import WORD_KINDS
from policies.protocol import NOTHING, Plan, Policy, Privileged
from policies.rollout import drive
from policies.runs import Run, write_json
from policies.town_expert import TownExpert
from policies.vision import Album, Questioner, along, figures, fresh
from policies.word_probes import WordProbes
from sensors.clip import Clip, VehicleState
from sensors.errors import unknown_name
from sensors.imu import ImuWindow
from sim.env import CameraEnv
from sim.imagined import Imagined
from sim.metrics.driving import mean_with_interval
from sim.metrics.protocols import RESAMPLES
from sim.scenarios import Scenario
from sim.town_world import TownWorld

REASONS_FILE = "reasons.json"
IMAGINED_EVERY_US = 2_000_000
NOTHING_SAID = "(nothing)"
HEARD: dict[str, Callable[[Clip], Clip]] = {
    "words-only": lambda clip: replace(clip, command="follow"),
    "command-only": lambda clip: replace(clip, instruction=""),
    "silent": lambda clip: replace(clip, command="follow", instruction=""),
}


@dataclass(frozen=True)
class Given:
    """A reason that was given; a line of RUN/reasons.json.

    where        "imagined", or "driven" by the policy itself
    said, meant  by the policy and by the expert in its place
    """

    where: str
    scene: str
    at_s: float
    said: str
    meant: str


def category(reason: str) -> str:
    """Action and cause of a reason, whatever the distance."""
    return reason.partition(", ")[0] or NOTHING_SAID


class ReasonQuestioner(Questioner):
    """Asks for pairs of what is said; and now and then why, of a moment that might be."""

    probes = WordProbes

    def __init__(self, policy: Policy, env: CameraEnv, scene: str, album: Album):
        self.given: list[Given] = []
        super().__init__(policy, env, scene, album)

    def reset(self, seed: int) -> None:
        super().reset(seed)
        self._imagining, self._next_us = np.random.default_rng([seed, 12]), 0

    def plan(self, clip: Clip, privileged: Privileged) -> Plan:
        plan = super().plan(clip, privileged)
        if clip.now_us >= self._next_us:
            self._next_us = clip.now_us + IMAGINED_EVERY_US
            might = imagine(privileged.world, self._imagining)
            there, meant = expected(privileged.world, self._expert, might)
            said = fresh(self._asked, self._imagined(clip, privileged.world, there, might))
            at_s = (clip.now_us - self._begun_us) * 1e-6
            self.given.append(Given("imagined", self._scene, at_s, said.reason, meant.reason))
        return plan

    def _imagined(self, clip: Clip, world: TownWorld, there: TownWorld, might: Imagined) -> Clip:
        """The clip of a moment that might be: of its past it has the step before, if it has one at all."""
        images, mask, poses = np.zeros_like(clip.images), np.zeros_like(clip.image_mask), clip.T_world_from_ego.copy()
        looks = (might, looked_back(might, self._imagining))
        for back, (look, then) in enumerate(zip(looks, reversed(self._moments), strict=False), 1):
            moment = drawn(world, then, look, self._env.weather)
            images[-back], mask[-back], poses[-back] = self._env.draw(moment), True, moment.T_world_from_ego
        return replace(
            clip,
            images=images,
            image_mask=mask,
            T_world_from_ego=poses,
            T_world_from_ego_now=might.ego.T_world_from_ego,
            imu=ImuWindow.empty(),
            vehicle=VehicleState(might.ego.speed_mps, 0.0, 0.0),
            command=there.command,
            instruction=there.instruction,
        )


class Listener:
    """The policy as it drives, told less if `heard` says so; what it says at each plan is kept beside what the expert
    would say there. It is the expert that is privileged, the policy is handed nothing."""

    privileged = True

    def __init__(self, policy: Policy, heard: str = ""):
        if heard and heard not in HEARD:
            raise unknown_name("language", "heard", heard, HEARD)
        self._policy, self._hears = policy, HEARD.get(heard, lambda clip: clip)
        self._expert, self.drives = TownExpert(), []
        self.name = f"{policy.name}-{heard}" if heard else policy.name
        self.needs_images, self.clip_steps, self.image_size = policy.needs_images, policy.clip_steps, policy.image_size

    def reset(self, seed: int) -> None:
        self._policy.reset(seed)
        self._expert.reset(seed)
        self.drives.append([])
        self._begun_us: int | None = None

    def plan(self, clip: Clip, privileged: Privileged) -> Plan:
        plan, meant = self._policy.plan(self._hears(clip), NOTHING), self._expert.plan(clip, privileged)
        self._begun_us = clip.now_us if self._begun_us is None else self._begun_us
        at_s, scene = (clip.now_us - self._begun_us) * 1e-6, privileged.world.scenario.name
        self.drives[-1].append(Given("driven", scene, at_s, plan.reason, meant.reason))
        return plan


def ask(
    run: Run,
    policy: Policy,
    scenarios: Sequence[Scenario],
    driven: int,
    heard: Sequence[str] = (),
    seconds: float | None = None,
    renderer: str = "auto",
    progress: bool = True,
) -> list[str]:
    """Ask a policy along the expert's drives of these scenarios, and let it drive the first `driven` itself, told as
    always and as each of `heard` says; returns who drove.

    RUN/pairs.json, RUN/reasons.json; in the summary the figures are its `pairs`, and what was mistaken for what is
    `confusions`.
    """
    questioners = along(run, ReasonQuestioner, policy, scenarios, seconds, renderer, progress)
    listeners = [Listener(policy, each) for each in ("", *heard)] if driven else []
    if listeners:
        drive(run, listeners, scenarios[:driven], seconds, policy.image_size, 1, renderer, progress)
    drives = {"imagined": [questioner.given for questioner in questioners]}
    drives |= {"driven": listeners[0].drives} if driven else {}
    flat = figures([answer for questioner in questioners for answer in questioner.answers], WORD_KINDS)
    for where, given in drives.items():
        flat |= reason_figures(where, given)
    write_json(run.path / REASONS_FILE, [asdict(one) for given in drives.values() for each in given for one in each])
    run.summary["pairs"] = {policy.name: flat}
    run.summary["confusions"] = {
        where: confusion([one for each in given for one in each]) for where, given in drives.items()
    }
    run.save()
    return [listener.name for listener in listeners]


def reason_figures(where: str, drives: Sequence[Sequence[Given]], resamples: int = RESAMPLES) -> dict[str, float]:
    """Flat: `reason.WHERE`, the share of reasons whose action and cause are right, and `reason.WHERE_action`; each with
    its n, of reasons, and the percentile bootstrap over drives, since the reasons of one are of much the same."""
    flat: dict[str, float] = {}
    whole = [given for given in drives if given]
    for name, of in ((where, category), (f"{where}_action", lambda reason: category(reason).partition(":")[0])):
        shares = np.array([np.mean([of(one.said) == of(one.meant) for one in given]) for given in whole])
        counts = np.array([len(given) for given in whole], dtype=np.float64)
        flat |= mean_with_interval(f"reason.{name}", shares, counts, np.random.default_rng(0), resamples)
        flat[f"reason.{name}.n"] = int(counts.sum())
    return flat


def confusion(given: Sequence[Given]) -> list[tuple[str, str, int]]:
    """(meant, said, how often) by category, what was meant most often first."""
    pairs = Counter((category(one.meant), category(one.said)) for one in given)
    meant = Counter(category(one.meant) for one in given)
    return [(*pair, n) for pair, n in sorted(pairs.items(), key=lambda row: (-meant[row[0][0]], row[0][0], -row[1]))]
