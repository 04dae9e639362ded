"""Character and word error rates by jiwer, for the pairs of the test in src/train/tasks/transcribe_tests.rs.

    pip install jiwer
    python error_rates.py
"""
import jiwer

PAIRS = [
    ("one two three", "one to three"),
    ("0042.7", "8042"),
    ("the door is open", "door is open now"),
    ("größer als", "grosser als"),
    ("kitten", "sitting"),
    ("a b c d", "abcd"),
    ("lights on", "lights on"),
    ("nothing was said", ""),
]

for truth, heard in PAIRS:
    print(f'("{truth}", "{heard}", {jiwer.cer(truth, heard):.6f}, {jiwer.wer(truth, heard):.6f}),')
truths, heards = map(list, zip(*PAIRS))
print(f"all: {jiwer.cer(truths, heards):.6f}, {jiwer.wer(truths, heards):.6f}  (jiwer {jiwer.__version__ if hasattr(jiwer, '__version__') else ''})")
