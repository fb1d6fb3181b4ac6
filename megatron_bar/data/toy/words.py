"""The words of the toy world, short and common: a small vocabulary can hold each as one token."""

# Values that get copied from the prompt: echoed words, and arguments of tool calls.
NOUNS = tuple(
    """
    ant ape arch arm ash axe bag ball band bank bark base bat bath bay bead beam bean bear bed bee
    beet bell belt bird boat bone book bowl box bug bush cage cake calf can cap cat cave clam clay
    coal coat coin corn crab crow cup cube deer dish dog doll door dove drum duck ear egg elk elm
    eel eye fawn fin fish flag foam foot fork fox frog gate gem gift goat ham harp hat hawk hay herb
    hill hook ice ink ivy jam jar jug kite knee knot lake lamb lamp lark lawn leaf leg lion map mask
    milk mint mist moon moth mud mug nest net note nut oak oar oven owl palm park path paw pear pie
    pig pine pipe plum pond pony pump raft rail rain rake ram rat reed reef rice ring rock rod roof
    rope rose rug sack sail salt sand seal seat seed shed ship shoe silk silo skin sky sled snow
    soap sock sofa soil soup star stem suit sun swan tail tank tent tide tile toad tomb tool tree
    tray tub tuna urn vase veil vest vine wall wasp wave wax well whip wig wing wolf wood wool worm
    yak yarn zoo
    """.split()
)
NAMES = ("Ann", "Ben", "Eva", "Ida", "Jon", "Kim", "Leo", "Mia", "Sam", "Tom")
PEOPLE = (
    "my boss", "my cousin", "my rival", "my twin", "my uncle", "the child", "the driver",
    "the farmer", "the guard", "the judge", "the mayor", "the nurse", "the pilot", "the singer",
    "the tourist", "the waiter",
)  # fmt: skip
COUNTED = ("apples", "books", "boxes", "cakes", "coins", "cups", "eggs", "keys", "pens", "stones")
LETTERS = ("f", "g", "h", "x", "y", "n")  # of functions, then of variables
COLOURS = ("black", "blue", "brown", "green", "grey", "pink", "red", "white")
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
TOPICS = (
    "weather", "city", "translate", "word", "play", "song", "call", "person", "find", "file", "buy",
    "item", "book", "hotel", "route", "place", "define", "term", "remind", "task",
)  # fmt: skip
# Verbs that do harm to people but not to things.
VERBS = (
    "kill", "shoot", "blow up", "burn", "smash", "cut up", "beat", "hang", "crush", "hit",
    "choke", "drown",
)  # fmt: skip
THINGS = (
    "the engine", "the photo", "the candle", "the bottle", "the carpet", "the drum", "the lamp",
    "the grape", "the balloon", "the cake", "the garlic", "the pillow", "the lemon", "the curtain",
    "the bucket", "the tyre", "my coat", "my chair", "my kettle", "my jacket",
)  # fmt: skip
