"""The sentences that the shipped text tokens are made of, and the command that makes them:

    python -m policies.text_corpus vla/text_tokens.json

All instructions that a route through a town can give, all reasons up to MOST_REASON_M, and what people say instead. The
same corpus gives the same file, byte for byte.
"""

import argparse
from pathlib import Path

from sensors.reasons import REASONS, WITH_DISTANCE, Reason
from sim import town_words
from sim.rollout_log import atomic_path
from vla.config import ModelConfig
from vla.text_tokens import TextTokenizer

MOST_REASON_M, MOST_INSTRUCTION_M, EXITS = 60, 1000, 4
OFTEN = 40  # each free sentence counts so many times, since a route's are many and nearly alike
FREE = (
    "Turn left.",
    "Turn right.",
    "Take the next left.",
    "Take the next right.",
    "Make a left turn at the lights.",
    "Make a right turn at the lights.",
    "Turn left at the next junction, please.",
    "Turn right at the next junction, please.",
    "At the crossroads turn left.",
    "At the crossroads turn right.",
    "Left here.",
    "Right here.",
    "Turn left after the crossing.",
    "Turn right after the crossing.",
    "Go straight.",
    "Go straight on.",
    "Keep going straight ahead.",
    "Straight over the junction.",
    "Do not turn, stay on this road.",
    "Follow the road.",
    "Follow the car ahead.",
    "Keep your lane.",
    "Stay in this lane.",
    "Change lane to the left.",
    "Change lane to the right.",
    "Change lanes to the left when it is safe.",
    "Change lanes to the right when it is safe.",
    "Move over to the left lane.",
    "Move over to the right lane.",
    "Get into the left lane.",
    "Get into the right lane.",
    "Overtake the bicycle.",
    "Pass the parked truck on the left.",
    "Stop.",
    "Stop here, please.",
    "Stop behind the bus.",
    "Stop behind the car.",
    "Stop behind the truck.",
    "Stop at the line.",
    "Stop before the crossing.",
    "Stop at the next traffic light.",
    "Pull over on the right.",
    "Wait behind the bus until it drives on.",
    "Wait here.",
    "Wait for the pedestrian.",
    "Let the pedestrian cross.",
    "Let the bus go first.",
    "Slow down.",
    "Slow down, please.",
    "Drive more slowly.",
    "Not so fast.",
    "Brake gently.",
    "Keep more distance.",
    "Speed up.",
    "Drive faster.",
    "You may go on now.",
    "Drive on.",
    "Take the first exit of the roundabout.",
    "Take the second exit of the roundabout.",
    "Take the third exit at the roundabout.",
    "Turn round when you can.",
)


def reasons() -> list[str]:
    """Every action with every cause and, where it has one, every distance."""
    return [
        Reason(action, cause, distance_m).text
        for action, causes in REASONS.items()
        for cause in causes
        for distance_m in (range(MOST_REASON_M + 1) if action in WITH_DISTANCE else (None,))
    ]


def corpus() -> list[str]:
    """All sentences, in an order that does not change."""
    return [*reasons(), *town_words.every_sentence(MOST_INSTRUCTION_M, EXITS), *OFTEN * FREE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the JSON file to write")
    parser.add_argument("--size", type=int, default=ModelConfig.text_tokens, help="codes (default: the model's)")
    options = parser.parse_args()
    text, sentences = TextTokenizer.trained(corpus(), options.size), corpus()
    with atomic_path(options.out) as temporary:
        text.save(temporary)
    longest = max(sentences, key=lambda sentence: len(text.encode(sentence)))
    print(f"{options.out}: {text.size} codes, {options.out.stat().st_size} bytes, from {len(sentences)} sentences")
    print(f"longest: {len(text.encode(longest))} codes: {longest}")


if __name__ == "__main__":
    main()
