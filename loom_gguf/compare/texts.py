"""What two models read where nothing else is given: prose, speech, numbers, code, and a language other than English."""

DEFAULT_PROMPTS = (
    "The harbour lay quiet in the early morning. A fisherman pulled his boat over the wet stones, looked at the grey "
    "sky above the lighthouse, and decided to stay at home. By noon the storm had reached the village.",
    '"Did you see who took the key?" she asked. Nobody answered. The old clerk coughed, turned a page of his book, '
    "and said that keys had a habit of coming back on their own.",
    "Water boils at 100 degrees Celsius at sea level and at about 93 degrees in a town 2,000 metres above it, because "
    "the pressure of the air is lower there. The same pot of rice therefore takes longer to cook.",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total / "
    "len(values) if values else None\n",
    "Der Zug nach Hamburg hatte eine halbe Stunde Verspätung. Auf dem Bahnsteig lasen die Leute Zeitung, und ein Kind "
    "zählte die Wagen eines langen Güterzuges.",
)
