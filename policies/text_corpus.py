"""The sentences that the shipped text tokens are made of, by `vla train text-tokens`.

All instructions that a route through a town can give, all reasons up to MOST_REASON_M, and what people say instead. The
same corpus gives the same file, byte for byte.
"""

from sensors.reasons import REASONS, WITH_DISTANCE, Reason
from sim import town_words

MOST_REASON_M, MOST_INSTRUCTION_M, EXITS = 60, 1000, 4
OFTEN = 40  # each free sentence counts so many times, since a route's are many and nearly alike
# A checkpoint knows the text that its tokens stand for: another sentence here makes other tokens, and old ones useless.
# So degrees of turns, which routes tell since, are not among these: they are spelled with the tokens that there are.
FREE = (
    *(words for kind, wordings in town_words.WISHES.items() if kind != "stop behind" for words in wordings),
    *(town_words.wish_words("stop behind", 0, kind) for kind in town_words.WISHED_KINDS),
    "Make a left turn at the lights.",
    "Make a right turn at the lights.",
    "Turn left after the crossing.",
    "Turn right after the crossing.",
    "Do not turn, stay on this road.",
    "Follow the road.",
    "Follow the car ahead.",
    "Keep your lane.",
    "Stay in this lane.",
    "Overtake the bicycle.",
    "Pass the parked truck on the left.",
    "Stop.",
    "Stop here, please.",
    "Stop at the line.",
    "Stop before the crossing.",
    "Stop at the next traffic light.",
    "Pull over on the right.",
    "Wait behind the bus until it drives on.",
    "Wait here.",
    "Wait for the pedestrian.",
    "Let the pedestrian cross.",
    "Let the bus go first.",
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
    return [*reasons(), *town_words.every_sentence(MOST_INSTRUCTION_M, EXITS, degrees=()), *OFTEN * FREE]
