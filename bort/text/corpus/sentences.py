"""Sentence boundaries by rule, without a model or data: English prose, and other scripts' terminators."""

from __future__ import annotations

import re
from typing import Any, List

import regex

_ABBREVIATIONS = frozenset(
    """
    mr mrs ms messrs dr prof rev hon st gen col lt capt sgt maj cmdr adm gov sen rep pres supt insp sr jr
    e.g i.e eg ie cf viz vs v etc al ca approx resp incl excl esp fig figs eq eqs sec secs ch chap vol vols
    no nos pp p ed eds trans ref refs dept univ inc ltd co corp bros assn est
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri sat sun
    u.s u.k u.n d.c a.m p.m b.c a.d ph.d m.d b.a m.a
""".split()
)

_STILL_ENDS = frozenset(
    """
    etc inc ltd co corp jr sr a.m p.m b.c a.d ph.d m.d b.a m.a u.s u.k u.n d.c al
""".split()
)

_EAST_ASIAN_ENDS = "\u3002\uff01\uff1f\uff61"
_CLOSING = "\"'\u2019\u201d)\\]"
_OTHER_END = r"\p{Sentence_Break=STerm}"
_EAST_ASIAN_CLOSING = "\u300d\u300f\uff09\u3011\u300b\u3009\uff63\u2019\u201d"
# Three kinds of end. Full stop, question or exclamation mark, the quotes and brackets that close with it, and
# the blank after them. An East Asian terminator, with or without a blank. A terminator of another script
# (Devanagari's danda, the Arabic question mark, ...) before a blank. Looking behind keeps a long run of marks
# from being tried again from each of its places.
_END = regex.compile(
    rf"(?<![.!?\u2026])([.!?\u2026]+)([{_CLOSING}]*)\s+(?=([\"'\u2018\u201c(\[]*)(\S))"
    rf"|[{_EAST_ASIAN_ENDS}]+[{_EAST_ASIAN_CLOSING}]*\s*"
    rf"|(?<!{_OTHER_END})[{_OTHER_END}--[!?{_EAST_ASIAN_ENDS}]]+[{_CLOSING}]*\s+",
    regex.V1,
)
_OPENING = "\"'\u2018\u201c([-\u2013\u2014/"
_LONGEST = 24

_OPENERS = frozenset(
    """
    a an the this that these those i you he she it we they his her its our their my your there here
    in on at by for from with and but or if when while as after before since although however then so because
    what who how why where not no one all some many most more each every other another such to
""".split()
)


def split_sentences(text: str) -> List[str]:
    """Sentences of a text, in order, without the blanks around them. :func:`blank_after` joins them again.

    A sentence ends at ``.``, ``!``, ``?`` or an ellipsis before a blank and a capital, digit or opening
    quote, but not after an abbreviation or an initial; at an ideographic full stop or a full-width ``!`` or
    ``?`` anywhere; at another script's terminator before a blank. Takes time in proportion to the text.
    """
    sentences: List[str] = []
    begin = 0
    for match in _END.finditer(text):
        if _is_end(text, match):
            sentences.append(text[begin : match.end()].strip())
            begin = match.end()
    tail = text[begin:].strip()
    if tail:
        sentences.append(tail)
    return sentences


def blank_after(sentence: str) -> str:
    """What stands between a sentence and the next of its document: a blank, nothing in East Asian text."""
    return "" if sentence.rstrip(_EAST_ASIAN_CLOSING)[-1:] in tuple(_EAST_ASIAN_ENDS) else " "


def _is_end(text: str, match: Any) -> bool:
    if match.group(1) is None:
        return True
    following = match.group(4)
    if following.islower() or following in ",;:.!?)":
        return False
    if match.group(1) != "." or match.group(2):
        return True
    stop = match.start()
    blank = text.rfind(" ", max(0, stop - _LONGEST), stop)
    last = text[max(0, stop - _LONGEST) if blank < 0 else blank + 1 : stop].lstrip(_OPENING)
    initial = len(last) == 1 and last.isupper() and last != "I"
    if not initial and last.lower() not in _ABBREVIATIONS:
        return True
    # "J. Smith" and "Mr. Smith" go on;
    # "in the U.S. The ..." and "plan B. The ..." end where a common opener follows.
    if initial or last.lower() in _STILL_ENDS:
        opener = re.match(r"[A-Za-z]+", text[match.end(4) - 1 : match.end(4) + 11])
        return opener is not None and opener.group(0).lower() in _OPENERS
    return False
