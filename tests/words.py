"""Words that made-up texts are drawn from."""

_LINE = "the cat sat on a mat and saw nine small birds fly over green hills while rain fell softly"
WORDS = _LINE.split()
