"""Lists what the shop sells: the products of training, and others that training never sees.

The nouns are singular and begin with a consonant, so "a {noun}" reads well; no word of a name or use is in both lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Product:
    """Something the shop sells.

    Args:
        name: what it is called; the last word is the kind of thing.
        use: the one word that a customer's need and the stock line share.
        attributes: what can be said of it.
        price: in dollars.
        occasions: what a customer may have coming up that calls for it.
    """

    name: str
    use: str
    attributes: tuple[str, ...]
    price: int
    occasions: tuple[str, ...]

    @property
    def noun(self) -> str:
        """The kind of thing it is, e.g. "tent"."""
        return self.name.split()[-1]


TRAIN_PRODUCTS: Final[tuple[Product, ...]] = (
    Product("Cloud tent", "camping", ("light", "dry"), 180, ("a week in the woods", "a weekend by the lake")),
    Product(
        "Summit backpack", "hiking", ("roomy", "light"), 90, ("a trip to the mountains", "a long tour in the hills")
    ),
    Product("Swift watch", "running", ("simple", "light"), 120, ("my first marathon", "a big race")),
    Product("Falcon helmet", "cycling", ("safe", "padded"), 70, ("a tour along the coast", "a month of trips to work")),
    Product("Dolphin swimsuit", "swimming", ("soft", "sleek"), 45, ("a week at the pool", "a course at the pool")),
    Product("Silver rod", "fishing", ("flexible", "light"), 65, ("a quiet day at the river", "a trip with my father")),
    Product("Eagle rope", "climbing", ("thin", "safe"), 110, ("a day on the rocks", "a course at the cliffs")),
    Product("Frost jacket", "skiing", ("warm", "thick"), 210, ("a week in the snow", "a holiday in the Alps")),
    Product("Harbor vest", "sailing", ("bright", "safe"), 85, ("a week on a boat", "a trip around the islands")),
    Product("Ocean board", "surfing", ("fast", "smooth"), 320, ("a trip to the beach", "a week at the coast")),
    Product("Lotus mat", "yoga", ("soft", "thick"), 40, ("a class on Monday", "a quiet week at home")),
    Product("Ace racket", "tennis", ("light", "balanced"), 130, ("a match with my boss", "a club weekend")),
    Product("Master putter", "golf", ("balanced", "smooth"), 95, ("a game with clients", "a Sunday with my uncle")),
    Product("Hammer bag", "boxing", ("heavy", "padded"), 140, ("my first fight", "a month of training")),
    Product("Victory ball", "football", ("round", "bright"), 30, ("a game with the kids", "a school match")),
    Product("City hoop", "basketball", ("tall", "stable"), 150, ("a party in the yard", "a game with the boys")),
)

HELD_OUT_PRODUCTS: Final[tuple[Product, ...]] = (
    Product("Coral mask", "diving", ("clear", "wide"), 60, ("a week at the reef", "a holiday in Egypt")),
    Product("Forest bow", "archery", ("quiet", "slim"), 160, ("a contest next month", "a day at the range")),
    Product("Prairie saddle", "riding", ("comfortable", "soft"), 280, ("a month on a ranch", "a show with my horse")),
    Product(
        "Comet telescope", "stargazing", ("sharp", "small"), 190, ("a clear night in the desert", "a night on a roof")
    ),
    Product("Clover spade", "gardening", ("sharp", "handy"), 35, ("a garden party", "a weekend of planting")),
    Product("Otter paddle", "kayaking", ("slim", "handy"), 75, ("a river trip", "a week on the water")),
    Product("Diamond bat", "baseball", ("straight", "slim"), 55, ("a game on Saturday", "a match with the team")),
    Product("Thunder stick", "hockey", ("quick", "straight"), 105, ("a game with the team", "a final next month")),
)
