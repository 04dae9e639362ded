"""tokenizer.json for the tiny language model: one token a character, of 200. Needs tokenizers 0.23."""
import json, string
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

characters = ["</s>", "<unk>"] + list(string.ascii_letters + string.digits + string.punctuation + " \n")
vocabulary = {token: i for i, token in enumerate(characters)}
# The model has 200 tokens: the rest are letters beyond ASCII.
for code in range(0xC0, 0x200):
    if len(vocabulary) < 200:
        vocabulary.setdefault(chr(code), len(vocabulary))
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
tokenizer.decoder = decoders.Fuse()
tokenizer.add_special_tokens([AddedToken("</s>", special=True), AddedToken("<unk>", special=True)])
tokenizer.save("tokenizer.json")
