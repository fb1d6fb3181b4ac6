"""The words of the toy world: short and common, so that a small vocabulary spells them in a few tokens."""

# Values that get copied from the prompt: echoed words, and arguments of tool calls.
NOUNS = tuple(
    """
    acorn amber angle ankle apple apron arrow aspen attic badge bagel baker banjo barge barn basil basin
    beach bean beard bell bench berry birch bird blade blanket board boat bone book boot bottle bowl box
    branch bread brick bridge broom brush bucket butter button cabin cable cactus cage cake camel camera
    candle canoe canyon carpet carrot castle cedar cellar chain chair chalk cherry chest chimney circle
    clay cliff clock cloud clover coast coat cobalt comet copper coral corner cotton couch cradle crane
    crater cricket crown crystal cup curtain daisy dawn desert desk diamond dish dock dolphin donkey door
    dove dragon drawer drum eagle easel echo elbow elm ember engine falcon feather fence fern fiddle field
    finger fire flag flame flint flower flute forest fork fossil fountain fox frost garden garlic garnet
    gate ginger glacier glass glove goat gold goose grain granite grape grass guitar hammer harbor harp
    hazel helmet heron hill honey hook horse island ivory ivy jacket jade jar jasmine jelly jewel juniper
    kayak kettle key kite kitten ladder lagoon lake lamp lantern lark laurel lawn leaf lemon lentil lily
    linen lion lizard lobster locket lotus magnet mango maple marble market meadow melon mint mirror mist
    moon moss mountain napkin needle nest nettle oak ocean olive onion opal orange orchard otter owl
    paddle palm panther parrot path peach pearl pebble pepper piano pillow pine planet plate plum pocket
    pond pony poppy quartz quill rabbit raven reed ribbon river robin rocket rose ruby saddle sail salmon
    sand shell silver spider spoon stone storm sun table tiger tower valley walnut whale willow window
    """.split()
)
NAMES = ("Ann", "Ben", "Eva", "Ida", "Jon", "Kim", "Leo", "Mia", "Sam", "Tom")
COLOURS = ("black", "blue", "brown", "green", "grey", "pink", "red", "white")
ORDINALS = ("first", "second", "third")
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "up": "down",
    "day": "night",
    "old": "new",
    "dry": "wet",
    "fast": "slow",
    "full": "empty",
    "hard": "soft",
    "light": "dark",
    "near": "far",
    "open": "shut",
}
