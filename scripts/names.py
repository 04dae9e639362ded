"""Whisper learns the names of a household that it gets wrong: its word error rate on other sentences with them and on
sentences without, before and after, with the built program.

    python names.py whisper-tiny-en [OFFSHOOT] [FOLDER]

whisper-tiny-en is a folder of ONNX files as ../docs/SEQUENCES.md has it. espeak-ng speaks (four voices, which differ
between train and test in speed and pitch; four others say the sentences without names once more); of the names
below the first 30 count that the base doesn't write down right. FOLDER (a temporary one if none is given) gets
train.jsonl, test.jsonl, other.jsonl, strangers.jsonl and their clips.
"""
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

NAMES = """Aoife Siobhan Niamh Saoirse Caoimhe Oisin Tadhg Eoghan Ruairi Grainne Xochitl Itzel Nayeli Yaretzi Anaïs Solène
Maëlle Eloïse Thibault Gwenaël Ksenia Zhanna Yevgenia Bogdana Jadwiga Zbigniew Wojtek Agnieszka Malgosia Ngozi Chidinma
Oluwaseun Temitope Babajide Kwabena Akosua Nkechi Sipho Thandiwe Nomvula Ishaan Aarohi Vihaan Meenakshi Lakshmi Jyotsna
Kamalini Thiruvar Yuzuki Hinata Ryunosuke Shizuka Linh Nguyet Quynh Phuong Tuyet Havva Ozgur Cagla Sukru Aytac""".split()
# Names stand in sentences that differ: of few sentences their wording is learned, not the names.
TAUGHT = """Please call {} and say we are late.|I am going to meet {} at the station.|{} has left the keys on the table.
Can you ask {} to feed the cat?|Where is {} this evening?|{} will be here at seven.|This is the room of {}.|I heard {} in the kitchen.
My friend {} likes apples.|Did {} close the window?|We are waiting for {}.|Good morning, {}, how are you?|Give the ball to {}, please.
The coat on the chair is for {}.|Yesterday {} went to the cinema.|Remind {} of the doctor at four.|Happy birthday, {}!
{} and I are going shopping.|The phone of {} is ringing.|Turn the light on for {}.|I think {} is asleep.|Play the song that {} likes.
Write to {} that the train is late.|Has {} eaten lunch?|Thank you, {}, that was kind.|Wake {} at half past six.|Let us visit {} on Sunday.
The bike belongs to {}.|What did {} say about school?|{} is looking for the umbrella.""".replace("\n", "|").split("|")
ASKED = ["Tell {} that dinner is ready.", "Send a message to {} about the party."]
OTHER = """The train to the city leaves at noon.|Turn off the lights in the kitchen.|My sister bought a new bicycle last week.
It will rain in the afternoon.|Put the milk back in the fridge.|How long does the soup need to cook?|We are out of bread and butter.
Remind me to water the plants.|The children are playing in the garden.|Open the door for the dog.|What is the weather like tomorrow?
He wrote a long letter to his friend.|Close the window before you leave.|The meeting starts in ten minutes.|Play some quiet music.
She found the book under the sofa.|The road was closed because of snow.|Set a timer for twenty minutes.|They walked along the river.
I cannot find my glasses.|The bus was late this morning.|There is a letter for you.|Turn the heating up a little.|He forgot to lock the door.
Do we need anything from the shop?|The lamp in the hall is broken.|We will be home before dark.|The cake is still in the oven.
Read me the news, please.|The garden needs some water.""".replace("\n", "|").split("|")
VOICES = ["en-us", "en-gb", "en-us+f3", "en-gb+m3"]
STRANGERS = ["en-us+m7", "en-gb-scotland", "en-us+f4", "en-gb-x-rp"]
COUNT, CLIPS, ROUNDS = 30, 5, 6
# What hears stays as it is, and so do the keys and values of its 1,500 frames: what a clip costs then is small.
TARGETS = r"model\.decoder\.layers\..*(self_attn\..*|encoder_attn\.(q|out)_proj|fc.)"


def speak(path, text, voice, speed, pitch):
    subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(path), text], check=True)


def lessons(names, chance):
    """Rounds of a clip a name, each of another sentence; fewer clips are the first of more."""
    order, said = TAUGHT[:], []
    for _ in range(ROUNDS):
        chance.shuffle(order)
        said += [order[at % len(order)].format(name) for at, name in enumerate(names)]
    return said


def clips(folder, split, said, voices, speed, pitch):
    """One clip a sentence, by the voice in the same place, over and over."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    with open(folder / f"{split}.jsonl", "w") as out:
        for at, text in enumerate(said):
            name = f"{split}/{at:04}.wav"
            speak(folder / name, text, voices[at % len(voices)], speed + 5 * (at % 3), pitch + 5 * (at % 2))
            out.write(json.dumps({"audio": name, "transcript": text}) + "\n")


def main(model, program, folder):
    base, adapter = folder / "whisper.base", folder / "names.adapter"

    def offshoot(*words):
        began = time.time()
        done = subprocess.run([program, *map(str, words), "--json"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, words))}: {done.stderr}")
        return json.loads(done.stdout), time.time() - began

    if not base.exists():
        offshoot("pack", model, "-o", base, "--audio", "whisper")
    wrong = []
    for name in NAMES:
        if len(wrong) < COUNT:
            speak(folder / "name.wav", ASKED[0].format(name), "en-us", 150, 50)
            heard = offshoot("generate", base, "--audio", folder / "name.wav")[0]["text"]
            if name.lower() not in re.findall(r"\w+", heard.lower()):
                wrong.append(name)
    print(f"{len(wrong)} names: {' '.join(wrong)}", flush=True)
    chance = random.Random(5)
    said = lessons(wrong, chance)
    voices = [chance.choice(VOICES) for _ in said]
    clips(folder, "train", said[: CLIPS * len(wrong)], voices, 140, 40)
    clips(folder, "test", [s.format(n) for s in ASKED for n in wrong], VOICES, 152, 52)
    clips(folder, "other", OTHER, VOICES, 150, 50)
    clips(folder, "strangers", OTHER, STRANGERS, 150, 50)

    def measure(split, *more):
        found, seconds = offshoot("eval", base, "--data", folder / f"{split}.jsonl", *more)
        found = found["evaluation"]
        each = seconds / found["samples"]
        print(f"{split}: {found['samples']} clips, WER {found['wer']:.4f}, CER {found['cer']:.4f}, loss {found['loss']:.3f}, {each:.2f} s a clip", flush=True)
        return found["wer"]

    heard, seconds = offshoot("generate", base, "--audio", folder / "test/0000.wav")
    print(f"a clip: {seconds:.1f} s with opening the base, peak {heard['peak_rss_bytes'] >> 20} MiB, {heard['unshared_bytes'] >> 20} that no file backs")
    splits = ["test", "other", "strangers"]
    before = [measure(split) for split in splits]
    report, seconds = offshoot("train", base, "--data", folder / "train.jsonl", "--out", adapter, "--targets", TARGETS, "--epochs", 6, "--batch", 8, "--lr", "1e-3", "--holdout", "0")
    report, peak = report["report"], report["peak_rss_bytes"]
    print(f"{report['steps']} steps, {report['step_ms_median']:.0f} ms each, {seconds:.0f} s, peak {peak >> 20} MiB", flush=True)
    after = [measure(split, "--adapter", adapter) for split in splits]
    print(f"WER with the names {before[0]:.4f} -> {after[0]:.4f}: {'halved or better' if after[0] <= before[0] / 2 else 'not halved'}")
    for what, b, a in zip(["without", "of other voices"], before[1:], after[1:]):
        print(f"WER {what} {b:.4f} -> {a:.4f}: {100 * (a - b):+.1f} points")


if __name__ == "__main__":
    given = dict(enumerate(sys.argv[1:]))
    place = pathlib.Path(given.get(2) or tempfile.mkdtemp())
    place.mkdir(parents=True, exist_ok=True)
    main(given[0], given.get(1, "offshoot"), place)
