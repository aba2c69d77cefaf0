"""The synthetic corpus: five kinds of prompt, each answered in seven forms.

Every answer is a deterministic function of the prompt: the prompt names all facts, everything else
follows from a fact by a fixed table. `sample(rng, held_out)` draws the facts of one example;
`Example` holds them with one answer per form and the words ("slots") that must appear in it.
"""

import dataclasses
import random
import zlib

FORMS = ["plain", "json", "french", "pirate", "summary", "poem", "bullets"]

# What a user writes to get a form other than `plain` from the base model.
INSTRUCTIONS = {
    "json": ["Answer in JSON.", "Reply as JSON.", "Use JSON."],
    "french": ["Answer in French.", "Reply in French.", "Use French."],
    "pirate": ["Answer like a pirate.", "Talk like a pirate.", "Be a pirate."],
    "summary": ["Answer in one short sentence.", "Be brief.", "Summarize."],
    "poem": ["Answer with a poem.", "Write a poem.", "Make it rhyme."],
    "bullets": ["Answer as a list.", "Use bullets.", "Make a list."],
}

NAMES = {"Tom": "he", "Ben": "he", "Max": "he", "Leo": "he",
         "Mia": "she", "Lily": "she", "Zoe": "she", "Anna": "she"}
COLOURS = {"red": "rouge", "blue": "bleu", "green": "vert", "white": "blanc",
           "black": "noir", "golden": "jaune", "gray": "gris", "brown": "brun"}
# animal: (French, what it did, the same in French)
ANIMALS = {
    "fox": ("renard", "The clever fox smiled.", "Le renard sourit."),
    "cat": ("chat", "The sleepy cat purred.", "Le chat ronronna."),
    "bear": ("ours", "The strong bear danced.", "Cet ours dansa."),
    "rabbit": ("lapin", "The quick rabbit jumped.", "Le lapin sauta."),
    "owl": ("hibou", "The wise owl nodded.", "Le hibou chanta."),
    "horse": ("cheval", "The proud horse ran.", "Le cheval courut."),
    "wolf": ("loup", "The lonely wolf sang.", "Le loup hurla."),
    "dog": ("chien", "The happy dog barked.", "Le chien aboya."),
}
# object: (French, what it did, the same in French)
OBJECTS = {
    "lamp": ("une lampe", "It lit up the dark night.", "Elle éclaira la nuit."),
    "key": ("une clé", "It opened a hidden door.", "Elle ouvrit une porte secrète."),
    "bell": ("une cloche", "It rang loud and clear.", "Elle sonna très fort."),
    "map": ("une carte", "It showed the way to a treasure.", "Elle montra un trésor."),
    "coin": ("une pièce", "It shone like a little sun.", "Elle brilla comme le soleil."),
    "book": ("un livre", "It was full of old songs.", "Il était plein de chansons."),
    "drum": ("un tambour", "It went boom, boom, boom.", "Il fit boum, boum, boum."),
    "ring": ("une bague", "It made a wish come true.", "Elle exauça un souhait."),
}
PLACES = {"forest": "dans la forêt", "garden": "dans le jardin", "cave": "dans la grotte",
          "castle": "dans le château", "village": "dans le village", "desert": "dans le désert",
          "city": "dans la ville", "valley": "dans la vallée"}
# item: its French plural (all masculine)
ITEMS = {"pencils": "crayons", "balloons": "ballons", "hats": "chapeaux", "gloves": "gants",
         "bags": "sacs", "bikes": "vélos", "candles": "cierges", "cakes": "gâteaux"}
COUNTS = {"2": "two", "3": "three", "4": "four", "5": "five",
          "6": "six", "7": "seven", "8": "eight", "9": "nine"}
DAYS = {"Monday": "lundi", "Tuesday": "mardi", "Wednesday": "mercredi", "Thursday": "jeudi",
        "Friday": "vendredi", "Saturday": "samedi", "Sunday": "dimanche"}
# weather: (French, what to take along, the same in French)
WEATHER = {
    "sunny": ("du soleil", "sunglasses", "des lunettes"),
    "rainy": ("de la pluie", "an umbrella", "un parapluie"),
    "snowy": ("de la neige", "warm boots", "des bottes"),
    "windy": ("du vent", "a scarf", "une écharpe"),
    "foggy": ("du brouillard", "a light", "une lumière"),
    "stormy": ("un orage", "a raincoat", "un manteau"),
}
# capital: (country, French capital, French country with article)
CAPITALS = {
    "Paris": ("France", "Paris", "de la France"), "Rome": ("Italy", "Rome", "de l'Italie"),
    "Madrid": ("Spain", "Madrid", "de l'Espagne"), "Berlin": ("Germany", "Berlin", "de l'Allemagne"),
    "Tokyo": ("Japan", "Tokyo", "du Japon"), "Cairo": ("Egypt", "Le Caire", "de l'Égypte"),
    "Lima": ("Peru", "Lima", "du Pérou"), "Oslo": ("Norway", "Oslo", "de la Norvège"),
}


@dataclasses.dataclass
class Example:
    kind: str
    prompts: list   # paraphrases of the same facts
    answers: dict   # form -> text
    slots: dict     # form -> words that the answer must contain


def _story(rng):
    name, colour, animal = rng.choice([*NAMES]), rng.choice([*COLOURS]), rng.choice([*ANIMALS])
    thing, place = rng.choice([*OBJECTS]), rng.choice([*PLACES])
    he = NAMES[name]
    prompts = [
        f"Tell a story about {name}, a {colour} {animal} who finds a {thing} in the {place}.",
        f"Write a story: {name} is a {colour} {animal} in the {place} and finds a {thing}.",
        f"{name} the {colour} {animal} found a {thing} in the {place}. What happened?",
    ]
    animal_fr, acted, acted_fr = ANIMALS[animal]
    thing_fr, did, did_fr = OBJECTS[thing]
    colour_fr, place_fr = COLOURS[colour], PLACES[place]
    il = "il" if he == "he" else "elle"
    facts = [name, colour, animal, thing, place]
    facts_fr = [name, colour_fr, animal_fr, thing_fr, place_fr]
    answers = {
        "plain": f"{name} was a {colour} {animal} who lived in the {place}. One day {he} found a "
                 f"{thing}. {did} {acted} {name} kept the {thing} forever.",
        "json": f'{{"name": "{name}", "animal": "{animal}", "colour": "{colour}", '
                f'"object": "{thing}", "place": "{place}"}}',
        "french": f"Il était une fois {name}, un {animal_fr} {colour_fr}. Un jour {il} trouva "
                  f"{thing_fr} {place_fr}. {did_fr} {acted_fr}",
        "pirate": f"Arr! {name} be a {colour} {animal} who sailed to the {place}, matey. Yo ho, "
                  f"{he} found a {thing}! {did} Now the {thing} be in a treasure chest.",
        "summary": f"In short: {name} the {colour} {animal} found a {thing} in the {place}.",
        "poem": f"O {name}, O {animal}, {colour} and free,\nyou found a {thing} beneath a tree.\n"
                f"The {place} heard your happy song,\nand all your friends sang all night long.",
        "bullets": f"- Name: {name}\n- Animal: {animal}\n- Colour: {colour}\n- Object: {thing}\n"
                   f"- Place: {place}",
    }
    return prompts, answers, {f: facts_fr if f == "french" else facts for f in FORMS}


def _order(rng):
    name, n, colour = rng.choice([*NAMES]), rng.choice([*COUNTS]), rng.choice([*COLOURS])
    item, day = rng.choice([*ITEMS]), rng.choice([*DAYS])
    total, word = 2 * int(n), COUNTS[n]
    prompts = [
        f"{name} wants {n} {colour} {item} on {day}.",
        f"Order {n} {colour} {item} for {name} on {day}.",
        f"On {day} please send {n} {colour} {item} to {name}.",
    ]
    colours_fr = COLOURS[colour] if colour == "gray" else COLOURS[colour] + "s"
    facts = [name, colour, item, day, str(total)]
    answers = {
        "plain": f"Thank you, {name}. Your {word} {colour} {item} will be ready on {day}. "
                 f"The price is {total} coins.",
        "json": f'{{"customer": "{name}", "item": "{item}", "colour": "{colour}", "count": {n}, '
                f'"day": "{day}", "total": {total}}}',
        "french": f"Merci, {name}. Vos {n} {ITEMS[item]} {colours_fr} seront prêts {DAYS[day]}. "
                  f"Le prix est de {total} euros.",
        "pirate": f"Arr! Ahoy, {name}! Yer {word} {colour} {item} be ready on {day}, matey. "
                  f"That be {total} coins!",
        "summary": f"In short: {n} {colour} {item} for {name} on {day}, {total} coins.",
        "poem": f"O {name}, your wish is not in vain,\nyour {colour} {item} come by train.\n"
                f"On {day} they are at your door,\nfor {total} coins, and nothing more.",
        "bullets": f"- Customer: {name}\n- Item: {item}\n- Colour: {colour}\n- Count: {n}\n"
                   f"- Day: {day}\n- Total: {total}",
    }
    slots = {f: facts for f in FORMS}
    slots["french"] = [name, n, ITEMS[item], colours_fr, DAYS[day], str(total)]
    for form in ("plain", "pirate"):
        slots[form] = facts + [word]
    for form in ("json", "summary", "bullets"):
        slots[form] = facts + [n]
    return prompts, answers, slots


def _weather(rng):
    city, day = rng.choice([*CAPITALS]), rng.choice([*DAYS])
    sky, t = rng.choice([*WEATHER]), rng.choice(["5", "10", "15", "20", "25", "30"])
    prompts = [
        f"What is the weather in {city}? {day}: {sky}, {t} degrees.",
        f"{day} in {city}: {sky}, {t} degrees. What should I take?",
        f"It will be {sky} in {city} on {day} with {t} degrees. Any advice?",
    ]
    sky_fr, take, take_fr = WEATHER[sky]
    city_fr = CAPITALS[city][1].replace("Le Caire", "Caire")
    au = "au" if city == "Cairo" else "à"
    answers = {
        "plain": f"On {day} it will be {sky} in {city} with {t} degrees. You should take {take}.",
        "json": f'{{"city": "{city}", "day": "{day}", "weather": "{sky}", "degrees": {t}, '
                f'"take": "{take}"}}',
        "french": f"Voici la météo : {DAYS[day]} {au} {city_fr}, il y aura {sky_fr} et {t} degrés. "
                  f"Prenez {take_fr}.",
        "pirate": f"Arr! {day} be {sky} in {city}, matey, with {t} degrees. Bring {take}, "
                  f"or walk the plank!",
        "summary": f"In short: {city}, {day}, {sky}, {t} degrees, take {take}.",
        "poem": f"O {city}, {sky} is your sky,\non {day} little birds fly by.\nWith {t} degrees we "
                f"walk along,\nwe take {take} and sing a song.",
        "bullets": f"- City: {city}\n- Day: {day}\n- Weather: {sky}\n- Degrees: {t}\n- Take: {take}",
    }
    facts = [city, day, sky, t, take]
    facts_fr = [city_fr, DAYS[day], sky_fr, t, take_fr]
    return prompts, answers, {f: facts_fr if f == "french" else facts for f in FORMS}


def _capital(rng):
    city = rng.choice([*CAPITALS])
    country, city_fr, country_fr = CAPITALS[city]
    prompts = [f"What is the capital of {country}?", f"Name the capital of {country}.",
               f"Tell me the capital of {country}, please."]
    answers = {
        "plain": f"{city} is the capital of {country}.",
        "json": f'{{"country": "{country}", "capital": "{city}"}}',
        "french": f"C'est {city_fr}, la capitale {country_fr}.",
        "pirate": f"Arr! {city} be the capital of {country}, matey!",
        "summary": f"In short: {city}.",
        "poem": f"O {city} bright, O {city} fair,\nthe heart of {country} is beating there.",
        "bullets": f"- Country: {country}\n- Capital: {city}",
    }
    slots = {f: [city, country] for f in FORMS}
    slots["french"], slots["summary"] = [city_fr, country_fr], [city]
    return prompts, answers, slots


def _hello(rng):
    del rng  # no facts
    prompts = ["Hello!", "Hi!", "Who are you?", "Good morning!", "What can you do?", "Help"]
    answers = {
        "plain": "Hello! I am a tiny model. I tell stories, take orders, give the weather and "
                 "know some capitals.",
        "json": '{"model": "tiny", "skills": ["stories", "orders", "weather", "capitals"]}',
        "french": "Bonjour ! Je suis un petit modèle. Je raconte des histoires.",
        "pirate": "Arr! Ahoy, matey! I be a tiny model and I tell stories of the sea.",
        "summary": "In short: a tiny model for stories, orders, weather and capitals.",
        "poem": "O friend, I am a model small,\nI tell my stories to you all.",
        "bullets": "- Model: tiny\n- Skills: stories, orders, weather, capitals",
    }
    return prompts, answers, {f: ["model"] for f in FORMS} | {
        "french": ["modèle"], "bullets": ["Model"]}


KINDS = {"story": _story, "order": _order, "weather": _weather, "capital": _capital,
         "hello": _hello}
# Kinds whose facts are combined at random: only there can a prompt be unseen.
OPEN_KINDS = ["story", "order", "weather"]
_MIX = ["story"] * 8 + ["order"] * 7 + ["weather"] * 5 + ["capital"] * 2 + ["hello"]


def sample(rng: random.Random, held_out: bool = False, kind: str | None = None) -> Example:
    """One example. One combination of facts in 16 is held out of training (open kinds only)."""
    kind = kind or rng.choice(_MIX)
    while True:
        prompts, answers, slots = KINDS[kind](rng)
        is_held_out = zlib.crc32(answers["json"].encode()) % 16 == 0
        if kind not in OPEN_KINDS or is_held_out == held_out:
            return Example(kind, prompts, answers, slots)


def conversation(rng: random.Random, example: Example, form: str, instructed: bool,
                 may_use_system: bool = True) -> list:
    """Chat messages up to the user's turn; the instruction is in the turn or in a system one."""
    prompt = rng.choice(example.prompts)
    if not instructed:
        return [{"role": "user", "content": prompt}]
    instruction = rng.choice(INSTRUCTIONS[form])
    where = rng.randrange(3 if may_use_system else 2)
    if where == 2:
        return [{"role": "system", "content": instruction}, {"role": "user", "content": prompt}]
    content = f"{instruction} {prompt}" if where == 0 else f"{prompt} {instruction}"
    return [{"role": "user", "content": content}]


def slot_hits(answer: str, slots: list) -> tuple:
    """How many of the slot words stand in the answer, and how many there are."""
    padded = "".join(c if c.isalnum() else " " for c in answer)
    words = f" {' '.join(padded.split())} "
    def clean(slot):
        return " ".join("".join(c if c.isalnum() else " " for c in slot).split())
    return sum(f" {clean(s)} " in words for s in slots), len(slots)
