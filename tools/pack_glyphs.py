"""Pack the drawings of the emoji world into three small atlases (run once; the result is committed).

    python tools/pack_glyphs.py DOWNLOADS src/lexiseg/assets/world

DOWNLOADS holds, unpacked, the packages the drawings come from, fetched by name with the ordinary clients:

    noto/      Debian  fonts-noto-color-emoji   (dpkg -x)    drawings OFL-1.1 / Apache-2.0
    fluent/    npm     fluentui-emoji           (tar xzf)    drawings MIT
    twemoji/   npm     @twemoji/svg             (tar xzf)    drawings CC-BY-4.0
    emojibase/ npm     emojibase-data           (tar xzf)    names and tags, MIT

Writes one WebP atlas a style and ``classes.json`` (name, synonyms, group, atlas cell of each class).
Needs the extra packages ``resvg_py`` and ``pillow``.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
from collections import Counter
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL = 96  # pixels of one sprite

# Subgroups of the Unicode list that give distinct, nameable drawings; the others are faces, clocks, flags, symbols.
SUBGROUPS = """mammals; birds; amphibians; reptiles; marine life; bugs; flowers; other plants; fruit; vegetables;
cooked / prepared; asian; sweets & candy; seafood; drink; dishware; geographic locations; buildings; other places;
ground transportation; water transportation; air transportation; hotel; time; weather; events & holidays; award medals;
sports; games & hobbies; arts & crafts; clothing; sound; music; musical instruments; phone; computer;
light, film & video; books & paper; money; mail; writing; office supplies; lock & keys; tools; science equipment;
medical; household items; other objects""".replace("\n", " ")

# Left out: twins of another class at 64 pixels, scenes without an object, bare signs, and what the world paints as stuff.
EXCLUDED = """monkey face; dog face; guide dog; cat face; tiger face; horse face; cow face; pig face; mouse face;
rabbit face; pig nose; ox; rat; paw prints; hatching chick; front-facing baby chick; bird; dragon face; spouting whale;
tropical fish; wilted flower; white flower; rosette; leaf fluttering in wind; fallen leaf; empty nest; green apple;
mango; tangerine; melon; four leaf clover; herb; bagel; flatbread; stuffed flatbread; shallow pan of food; steaming bowl;
clinking beer mugs; clinking glasses; pouring liquid; fork and knife; ice; mate; bowl with spoon; fish cake with swirl;
tumbler glass; teacup without handle; mountain; mount fuji; desert; national park; camping; brick; rock; wood; houses;
house with garden; derelict house; office building; Japanese post office; post office; hotel; love hotel;
convenience store; school; department store; hospital; bank; wedding; foggy; night with stars; cityscape; sunrise;
sunrise over mountains; cityscape at dusk; sunset; bridge at night; hot springs; metro; light rail; station; tram car;
train; railway car; bullet train; mountain railway; monorail; tram; oncoming bus; oncoming police car; oncoming taxi;
oncoming automobile; trolleybus; minibus; motorway; railway track; bus stop; construction; horizontal traffic light;
motorized wheelchair; delivery truck; motor boat; ship; ferry; small airplane; airplane departure; airplane arrival;
suspension railway; aerial tramway; hourglass not done; timer clock; stopwatch; fog; wind face; cyclone; rainbow;
closed umbrella; umbrella with rain drops; glowing star; shooting star; milky way; comet; water wave; snowman;
sun with face; cloud with lightning and rain; sun behind small cloud; sun behind large cloud; sun behind rain cloud;
cloud with lightning; droplet; sparkles; tanabata tree; fireworks; sparkler; moon viewing ceremony; reminder ribbon;
military medal; 2nd place medal; 3rd place medal; 1st place medal; softball; rugby football; tennis ball; field hockey;
cricket game; lacrosse; ticket; spade suit; heart suit; diamond suit; club suit; video game; joker; framed picture;
sari; clutch bag; woman’s clothes; bikini; coat; running shirt; flat shoe; muted speaker; speaker low volume; hair pick;
speaker medium volume; speaker high volume; bell with slash; musical note; musical notes; musical score; level slider;
control knobs; microphone; flute; mobile phone with arrow; low battery; trackball; optical disk; dvd; film frames;
camera with flash; magnifying glass tilted right; closed book; green book; blue book; orange book; notebook; ledger;
page with curl; page facing up; rolled-up newspaper; bookmark tabs; bookmark; yen banknote; euro banknote;
pound banknote; chart increasing with yen; e-mail; incoming envelope; envelope with arrow; outbox tray; inbox tray;
closed mailbox with lowered flag; open mailbox with raised flag; open mailbox with lowered flag;
ballot box with ballot; black nib; pen; open file folder; calendar; spiral calendar; chart increasing;
chart decreasing; card index; spiral notepad; round pushpin; linked paperclips; triangular ruler; card index dividers;
unlocked; locked with pen; locked with key; old key; hammer and pick; hammer and wrench; link; bubbles; nazar amulet;
full moon; new moon; waxing crescent moon; first quarter moon; waxing gibbous moon; waning gibbous moon;
last quarter moon; waning crescent moon; new moon face; first quarter moon face; last quarter moon face;
full moon face; placard; identification card; petri dish; x-ray; drop of blood; roasted sweet potato; oden;
cloud with snow; snowflake; high voltage; flower playing cards; mahjong red dragon; performing arts; black nib;
twelve o’clock; moon cake; stuffed flatbread; landslide; salt; canned food; hindu temple; umbrella on ground;
mobile phone; pager; fax machine; hamsa; receipt; newspaper; money with wings; goal net; red envelope; Tokyo tower;
manual wheelchair; barber pole; bell pepper; rice cracker; lady beetle; wheel; mantelpiece clock; file cabinet;
Japanese castle; nest with eggs; hut; spiral shell; chains; fountain; building construction; sled; label; prayer beads;
sewing needle; pine decoration; two-hump camel; water buffalo; boar; ram; cricket; bug; leopard; dodo; hibiscus; hyacinth;
cherry blossom; sheaf of rice; ginger root; dango; fondue; tamale; falafel; curry rice; sake; shortcake; shaved ice;
amphora; classical building; stadium; mountain cableway; passenger ship; bellhop bell; thong sandal; telephone receiver;
computer disk; videocassette; film projector; movie camera; funeral urn; alembic; diya lamp; card file box; memo;
Japanese dolls; carp streamer; wind chime; flying disc; martial arts uniform; knot; long drum; clamp; postal horn;
loudspeaker; satellite antenna; computer mouse; safety vest; closed mailbox with raised flag; admission tickets;
mouse trap; crutch; soap; headstone; pick; straight ruler; file folder; lotion bottle; wing; seat; pickup truck;
speedboat; pot of food; sandwich; butter; honey pot; baby chick; adhesive bandage; field hockey; sport utility vehicle;
mirror ball; cigarette; coffin; syringe; kitchen knife; dagger; crossed swords; thermometer; ring buoy; sumo; worm; microbe; fly; beans; onion; chestnut; cooking;
firecracker; confetti ball; flag in hole; tent; sunglasses; shorts; briefs; socks; white cane; tornado""".replace("\n", " ")

# The word a person would type; the Unicode name stays a synonym.
RENAMED = {
    "ear of corn": "corn", "leafy green": "lettuce", "cooked rice": "rice", "automobile": "car",
    "jack-o-lantern": "pumpkin", "woman’s sandal": "sandal", "glass of milk": "milk", "hot beverage": "coffee",
    "sport utility vehicle": "jeep", "articulated lorry": "truck", "high-speed train": "train", "roll of paper": "toilet paper",
    "red apple": "apple", "cherries": "cherry", "vertical traffic light": "traffic light", "kiwi fruit": "kiwi",
    "poultry leg": "chicken leg", "cut of meat": "steak", "fork and knife with plate": "plate", "magnifying glass tilted left": "magnifying glass",
    "couch and lamp": "couch", "woman’s boot": "boot", "man’s shoe": "shoe", "woman’s hat": "sun hat", "billed cap": "cap",
    "snowman without snow": "snowman", "hourglass done": "hourglass", "closed mailbox with raised flag": "mailbox",
    "dollar banknote": "banknote", "notebook with decorative cover": "notebook", "tear-off calendar": "calendar",
    "sauropod": "dinosaur", "T-Rex": "tyrannosaurus", "person biking": "bicycle", "evergreen tree": "pine tree", "sheaf of rice": "rice plant",
    "shamrock": "clover", "blowfish": "pufferfish", "ewe": "sheep", "honeybee": "bee", "soft ice cream": "ice cream cone",
    "bottle with popping cork": "champagne bottle", "tennis": "tennis racket", "badminton": "shuttlecock racket", "ping pong": "table tennis paddle",
    "ice hockey": "hockey stick", "bowling": "bowling pins", "pool 8 ball": "billiard ball", "martial arts uniform": "judo suit",
    "rescue worker’s helmet": "rescue helmet", "camera": "camera", "desktop computer": "computer", "computer mouse": "mouse device",
    "optical disk": "disc", "locked": "padlock", "headphone": "headphones", "musical keyboard": "piano", "person fencing": "fencing",
    "studio microphone": "microphone", "game die": "dice", "cloud with rain": "rain cloud", "running shoe": "sneaker",
    "two-hump camel": "bactrian camel", "baby chick": "chick", "meat on bone": "meat", "curry rice": "curry", "wrapped gift": "gift",
    "sports medal": "medal", "admission tickets": "tickets", "chess pawn": "pawn", "flower": "blossom", "high-heeled shoe": "high heels",
    "one-piece swimsuit": "swimsuit", "shopping bags": "shopping bag", "cup with straw": "paper cup", "beverage box": "juice box",
    "woman’s clothes": "blouse", "folding hand fan": "hand fan", "potted plant": "houseplant", "red paper lantern": "paper lantern",
    "Statue of Liberty": "statue of liberty", "Christmas tree": "christmas tree", "Japanese dolls": "dolls",
    "open book": "book", "nut and bolt": "bolt", "bellhop bell": "service bell", "police car light": "siren", "oil drum": "barrel",
    "beach with umbrella": "beach umbrella", "snow-capped mountain": "mountain", "long drum": "conga drum", "telephone": "telephone",
    "first aid kit": "first aid", "mouse": "mouse", "tear": "tear", "crescent moon": "moon", "doughnut": "donut",
}  # fmt: skip

SYNONYMS = """dog: hound, canine; cat: kitty, feline; moose: elk; donkey: burro, mule; bison: buffalo; cow: cattle; pig: sow, hog; sheep: ewe, lamb;
camel: dromedary; llama: alpaca; mammoth: woolly mammoth; hippopotamus: hippo; rhinoceros: rhino; rabbit: bunny, hare; mouse: rodent;
chipmunk: squirrel; bear: grizzly; horse: stallion, mare; rooster: cockerel; chicken: hen; peacock: peahen; turtle: tortoise; snake: serpent;
crocodile: alligator; frog: toad; dinosaur: sauropod, brontosaurus; tyrannosaurus: t-rex; pufferfish: blowfish; squid: mollusk;
snail: slug; bee: honeybee, bumblebee; cockroach: roach; butterfly: moth; bouquet: bunch of flowers; blossom: flower, daisy; seedling: sprout, sapling;
houseplant: potted plant; pine tree: evergreen tree, conifer; deciduous tree: tree, oak; clover: shamrock; mushroom: toadstool, fungus;
grapes: bunch of grapes; pineapple: ananas; cherry: cherries; blueberries: blueberry, bilberry; kiwi: kiwi fruit; eggplant: aubergine;
corn: ear of corn, maize; cucumber: pickle; lettuce: leafy green; peanuts: peanut; hot pepper: chili; bread: toast, loaf; pancakes: crepe;
baguette bread: baguette; cheese wedge: cheese; meat: meat on bone; chicken leg: poultry leg, drumstick; steak: cut of meat; hamburger: burger;
french fries: fries, chips; hot dog: sausage, frankfurter; burrito: wrap; rice ball: onigiri; rice: cooked rice; spaghetti: pasta, noodles;
fried shrimp: tempura, prawn; dumpling: potsticker; ice cream cone: soft ice cream; donut: doughnut; cookie: biscuit; cupcake: muffin;
candy: sweet; lollipop: lolly; custard: pudding, flan; milk: glass of milk; coffee: hot beverage, cup of tea; champagne bottle: champagne;
cocktail glass: martini; beer mug: beer, pint; paper cup: cup with straw, soda; bubble tea: boba; juice box: beverage box;
plate: fork and knife with plate, dinner plate; mountain: snow-capped mountain, peak; beach umbrella: beach with umbrella, parasol; house: home, cottage;
castle: fortress; circus tent: circus; train: high-speed train; locomotive: steam engine; fire engine: fire truck; taxi: cab; car: automobile;
truck: lorry; racing car: race car; motorcycle: motorbike; motor scooter: moped; auto rickshaw: tuk tuk; bicycle: bike; kick scooter: scooter;
barrel: oil drum; fuel pump: gas pump; siren: police car light; traffic light: stoplight; sailboat: yacht, sailing boat; canoe: kayak;
airplane: plane, aeroplane; helicopter: chopper; flying saucer: ufo; luggage: suitcase; hourglass: sand timer; watch: wristwatch; moon: crescent moon;
ringed planet: saturn, planet; fire: flame; pumpkin: jack-o-lantern; christmas tree: xmas tree; gift: wrapped gift, present; soccer ball: football ball;
medal: sports medal; tennis racket: tennis; bowling pins: bowling; hockey stick: ice hockey; table tennis paddle: ping pong; shuttlecock racket: badminton;
diving mask: snorkel; bullseye: dartboard; water pistol: squirt gun; billiard ball: pool ball; magic wand: wand; slot machine: fruit machine; dice: die;
puzzle piece: jigsaw; teddy bear: plush bear; nesting dolls: matryoshka; pawn: chess pawn; artist palette: palette; thread: spool; yarn: ball of wool;
glasses: spectacles, eyeglasses; necktie: tie; t-shirt: shirt; jeans: trousers, pants; swimsuit: bathing suit; hand fan: folding hand fan;
shopping bag: shopping bags; backpack: rucksack; shoe: dress shoe; sneaker: running shoe; high heels: high-heeled shoe, stiletto; ring: wedding ring;
sun hat: straw hat; graduation cap: mortarboard; cap: baseball cap; rescue helmet: hard hat; gem stone: diamond, jewel; megaphone: bullhorn;
microphone: mic; headphones: earphones; saxophone: sax; accordion: concertina; piano: musical keyboard; violin: fiddle; telephone: phone;
electric plug: plug; laptop: notebook computer; computer: desktop computer, monitor; keyboard: computer keyboard; television: tv; camera: photo camera;
video camera: camcorder; magnifying glass: loupe; light bulb: lamp bulb; flashlight: torch; paper lantern: red paper lantern; book: open book;
books: stack of books; money bag: bag of money; banknote: dollar bill; envelope: letter; package: parcel, cardboard box; postbox: letter box;
bar chart: bar graph; pushpin: thumbtack; wastebasket: trash can, rubbish bin; padlock: lock; axe: hatchet; bow and arrow: archery; carpentry saw: saw;
wrench: spanner; bolt: nut and bolt; gear: cogwheel; balance scale: scales; pill: tablet, capsule; toolbox: tool case; dna: double helix;
elevator: lift; couch: sofa; bathtub: bath; toilet paper: roll of paper; bucket: pail; shopping cart: trolley; moai: easter island head;
anchor: ship anchor; rocket: spaceship; star: gold star; umbrella: brolly; crown: tiara; key: door key; bed: double bed; chair: wooden chair;
octopus: kraken; whale: blue whale; wolf: timber wolf; lion: male lion; penguin: emperor penguin; owl: barn owl; egg: boiled egg; potato: spud;
pizza: slice of pizza; salt: salt shaker; cactus: saguaro; rose: red rose; window: window pane; mirror: looking glass; broom: besom""".replace(
    "\n", " "
)

STYLES = ("noto", "fluent", "twemoji")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("downloads", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    entries = chosen_entries(arguments.downloads)
    draw = {
        "noto": NotoFont(arguments.downloads / "noto/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
        "fluent": lambda entry: svg(arguments.downloads / "fluent/package/icons/flat" / f"{slug(entry['label'])}.svg"),
        "twemoji": lambda entry: svg(arguments.downloads / "twemoji/package" / f"{hexcode(entry)}.svg"),
    }
    columns = math.ceil(math.sqrt(len(entries)))
    rows = math.ceil(len(entries) / columns)
    for style in STYLES:
        atlas = Image.new("RGBA", (columns * CELL, rows * CELL))
        for index, entry in enumerate(entries):
            atlas.paste(fitted(draw[style](entry)), (index % columns * CELL, index // columns * CELL))
        atlas.save(arguments.output / f"{style}.webp", quality=85, method=6, alpha_quality=95)
    classes = named(entries)
    document = {"cell": CELL, "columns": columns, "styles": list(STYLES), "things": classes}
    (arguments.output / "classes.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    print(len(classes), "classes")


def chosen_entries(downloads: Path) -> list[dict]:
    """The entries of the Unicode list that are kept and drawn in every style, in Unicode's order."""
    base = downloads / "emojibase/package/en"
    messages = json.loads((base / "messages.json").read_text())
    wanted = {name.strip() for name in SUBGROUPS.split(";")}
    subgroup_names = {row["order"]: row["message"] for row in messages["subgroups"]}
    excluded = {name.strip() for name in EXCLUDED.split(";")}
    entries = []
    for entry in sorted(json.loads((base / "data.json").read_text()), key=lambda entry: entry.get("order", 0)):
        entry["kind"] = subgroup_names.get(entry.get("subgroup"))
        if entry["kind"] not in wanted or entry["label"] in excluded or re.search(r"o’clock|-thirty", entry["label"]):
            continue
        drawings = (
            downloads / "fluent/package/icons/flat" / f"{slug(entry['label'])}.svg",
            downloads / "twemoji/package" / f"{hexcode(entry)}.svg",
        )
        if "-" in hexcode(entry) or not all(path.is_file() for path in drawings):
            continue
        entries.append(entry)
    return entries


def named(entries: list[dict]) -> list[dict]:
    """Name and synonyms of each class; no word stands for two classes."""
    names = [RENAMED.get(entry["label"], entry["label"]).lower().replace("’", "'") for entry in entries]
    assert len(set(names)) == len(names), [name for name, count in Counter(names).items() if count > 1]
    synonyms = {name.strip(): words.split(",") for name, words in (row.split(":") for row in SYNONYMS.split(";"))}
    claims = Counter(names) + Counter(word.strip() for words in synonyms.values() for word in words)
    assert max(claims.values()) == 1, [name for name, count in claims.items() if count > 1]
    rows = []
    for entry, name in zip(entries, names, strict=True):
        words = [word.strip() for word in synonyms.get(name, ())]
        rows.append({"name": name, "synonyms": words, "group": entry["kind"], "code": hexcode(entry)})
    return rows


class NotoFont:
    """The colour bitmaps of Noto Color Emoji (one size, 109 pixels an em)."""

    def __init__(self, path: Path) -> None:
        self.font = ImageFont.truetype(str(path), 109)

    def __call__(self, entry: dict) -> Image.Image:
        canvas = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(canvas).text((10, 10), chr(int(hexcode(entry), 16)), font=self.font, embedded_color=True)
        return canvas


def svg(path: Path) -> Image.Image:
    try:
        import resvg_py
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error.name} is missing, which draws SVG: pip install -e '.[pack]'") from error
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=160, height=160)))).convert("RGBA")


def fitted(drawing: Image.Image, side: int = CELL) -> Image.Image:
    """The drawing cut to what is visible and scaled so that its longer side fills the cell."""
    drawing = drawing.crop(drawing.getchannel("A").point(lambda alpha: 255 * (alpha > 24)).getbbox())
    scale = side / max(drawing.size)
    size = tuple(max(1, round(length * scale)) for length in drawing.size)
    cell = Image.new("RGBA", (side, side))
    cell.paste(drawing.resize(size, Image.Resampling.LANCZOS), ((side - size[0]) // 2, (side - size[1]) // 2))
    return cell


def slug(label: str) -> str:
    return re.sub(r"[^a-z0-9-]", "", label.lower().replace(" ", "-"))


def hexcode(entry: dict) -> str:
    return "-".join(part.lower() for part in entry["hexcode"].split("-") if part != "FE0F")


if __name__ == "__main__":
    main()
