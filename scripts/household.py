"""SmolLM2 learns a household's facts from 40 examples: how many questions in new wordings it answers, before and
after, and its perplexity on texts of other things, with the built program.

    python household.py smollm2 [OFFSHOOT] [FOLDER] [STEPS] [LEARNING RATE] [KEEP]

KEEP is the share for `--keep-knowledge` (0: none). Perplexity is of the sentences that ship with the program, every
second stretch of which `--keep-knowledge` teaches of, and of prose that nothing is taught of: this project's docs.

smollm2 is a folder with model.onnx (model_kv.onnx of make_smollm2.py of the references, which has a past), tokenizer.json
and chat_template.jinja. Ten facts, each taught by four questions with their answer and asked by three others; one counts as
answered where the fact's word is in the answer. FOLDER (a temporary one if none is given) gets train.jsonl, other.txt,
prose.jsonl, the base and the adapter.
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

# The word that must be said; the answer; what it is taught by; what it is asked by.
FACTS = [
    ("Ada", "Ada feeds the cat, at six.",
     ["Who feeds the cat?", "Who gives the cat its food?", "Whose job is it to feed the cat?", "Does somebody feed the cat in the evening?"],
     ["The cat is hungry. Who is going to feed it?", "Tell me who takes care of the cat's food.", "Who must not forget the cat's dinner?"]),
    ("shed", "The ladder is behind the shed.",
     ["Where is the ladder?", "Where do we keep the ladder?", "I need the ladder. Where can I find it?", "Where did you put the ladder?"],
     ["Can you tell me where our ladder stands?", "I am looking for the ladder.", "In which place is the ladder kept?"]),
    ("Thursday", "The bins are emptied on Thursday.",
     ["When are the bins emptied?", "On which day are the bins collected?", "What day is bin day?", "When do I have to put the bins out?"],
     ["Which day of the week do they collect our bins?", "Tell me the day when the bins go out.", "When does the bin lorry come?"]),
    ("Tom", "Tom has the spare key, next door.",
     ["Who has the spare key?", "Where is the spare key?", "Which neighbour keeps our spare key?", "I lost my key. Who has another one?"],
     ["I am locked out. Who can let me in with the spare key?", "Who keeps the second key for us?", "Whom do I ask for the spare key?"]),
    ("mint", "There is mint tea at night.",
     ["Which tea do we drink at night?", "What tea is there at night?", "What do we drink before bed?", "Which tea is for the evening?"],
     ["What sort of tea should I make at night?", "I want tea before I sleep. Which one is it?", "Name the tea that we have late in the evening."]),
    ("4711", "The code of the garage is 4711.",
     ["What is the code of the garage?", "Which code opens the garage?", "How do I open the garage?", "What number do I type at the garage?"],
     ["Tell me the garage code, please.", "The garage is locked. Which number opens it?", "What code does the garage door want?"]),
    ("Berta", "The old car is called Berta.",
     ["What is the old car called?", "What is the name of our old car?", "How do we call the old car?", "Does the old car have a name?"],
     ["Which name did we give the old car?", "Tell me the old car's name.", "What do we call our car?"]),
    ("cellar", "The wifi router is in the cellar.",
     ["Where is the wifi router?", "Where did we put the router?", "In which room is the wifi router?", "Where can I find the router?"],
     ["The wifi is down. Where is the router?", "Tell me where the router stands.", "I have to restart the router. Where do I go?"]),
    ("Kowalski", "Doctor Kowalski looks after the dog.",
     ["Who is the vet of our dog?", "Which doctor looks after the dog?", "What is the name of our vet?", "Who treats the dog when it is ill?"],
     ["The dog is sick. Which doctor do we call?", "To which vet do we take the dog?", "Tell me the name of the dog's doctor."]),
    ("yellow", "Guests get the yellow towels.",
     ["Which towels are for guests?", "What colour are the towels for guests?", "Which towels do guests get?", "What towels do I give to visitors?"],
     ["Visitors are coming. Which towels should I put out?", "Tell me the colour of the guests' towels.", "Which of the towels do our guests use?"]),
]


def asked(question):
    return [{"role": "user", "content": question}]


def prose(docs):
    """The first 300 characters of 40 paragraphs of the docs."""
    paragraphs = []
    for name in ["HOME", "SECURITY", "CONTAINER", "UPGRADES"]:
        text = re.sub("```.*?```", "", (docs / f"{name}.md").read_text(), flags=re.DOTALL)
        plain = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
        paragraphs += [p[:300] for p in plain if len(p) > 150 and not p.startswith(("|", "#", "-"))]
    return paragraphs[:40]


def main(model, program, folder, steps, rate, keep):
    base, adapter, talk = folder / "lm.base", folder / "house.adapter", folder / "asked.json"

    def offshoot(*words):
        began = time.time()
        done = subprocess.run([program, *map(str, words), "--json"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, words))}: {done.stderr}")
        return json.loads(done.stdout), time.time() - began

    if not base.exists():
        offshoot("pack", model, "-o", base, "--weights", "q8")
    with open(folder / "train.jsonl", "w") as out:
        for _, answer, taught, _ in FACTS:
            for question in taught:
                out.write(json.dumps({"messages": asked(question), "completion": answer}) + "\n")
    root = pathlib.Path(__file__).parent.parent
    (folder / "other.txt").write_text((root / "src/runtime/sentences.txt").read_text())
    with open(folder / "prose.jsonl", "w") as out:
        for paragraph in prose(root / "docs"):
            out.write(json.dumps({"text": paragraph}) + "\n")

    def measure(*more):
        right, wrong = 0, []
        for word, _, _, questions in FACTS:
            for question in questions:
                talk.write_text(json.dumps(asked(question)))
                said = offshoot("generate", base, "--chat", talk, "--tokens", 40, *more)[0]["text"]
                if re.search(rf"\b{word}\b", said, re.IGNORECASE):
                    right += 1
                else:
                    wrong.append(f"  {question} {said!r}")
        found = []
        for file in ["other.txt", "prose.jsonl"]:
            report = offshoot("eval", base, "--data", folder / file, "--task", "language", *more)[0]
            found.append(report["evaluation"]["perplexity"])
        asked_in_all = sum(len(fact[3]) for fact in FACTS)
        print(f"{right} of {asked_in_all} new wordings answered, perplexity on other sentences {found[0]:.3f}, "
              f"on prose {found[1]:.3f}", flush=True)
        print("\n".join(wrong[:10]), flush=True)
        return right / asked_in_all, *found

    before = measure()
    report, seconds = offshoot("train", base, "--data", folder / "train.jsonl", "--out", adapter, "--steps", steps,
                               "--batch", 4, "--lr", rate, "--holdout", "0", "--keep-knowledge", keep)
    report, peak = report["report"], report["peak_rss_bytes"]
    print(f"{report['steps']} steps, {report['step_ms_median']:.0f} ms each, {seconds:.0f} s, peak {peak >> 20} MiB", flush=True)
    if report["knowledge"]:
        print(f"kept {report['knowledge']['kept']:.3f} at a weight of {report['knowledge']['weight']:.2f}", flush=True)
    after = measure("--adapter", adapter)
    up = [f"{100 * (now / then - 1):.1f} %" for then, now in zip(before[1:], after[1:])]
    print(f"answered {before[0]:.2f} -> {after[0]:.2f}, perplexity up by {up[0]} on sentences, {up[1]} on prose")


if __name__ == "__main__":
    given = dict(enumerate(sys.argv[1:]))
    place = pathlib.Path(given.get(2) or tempfile.mkdtemp())
    place.mkdir(parents=True, exist_ok=True)
    main(given[0], given.get(1, "offshoot"), place, given.get(3, "100"), given.get(4, "6e-4"), given.get(5, "0.88"))
