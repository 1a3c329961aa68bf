"""A base model's tokenizer with its chat template, its stop tokens, and a padding token that is no stop token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from trainer.data.examples.chat_template import (
    ChatTemplate,
    TemplateRefusedError,
    require_read,
)
from trainer.data.examples.text_pieces import TextTokenizer
from trainer.data.examples.token_boundaries import (
    CACHED_CHARACTERS,
    Ids,
    SpecialTokenFinder,
    TokenizedText,
)
from trainer.data.examples.turn_stops import NextTurnStops
from trainer.errors import ErrorCode, JobError
from trainer.spec import TemplateArgument

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MAX_CACHED_TEXTS: Final = 1 << 16


class ModelTokenizer:
    """Converts text to token ids and back, and renders conversations.

    Args:
        backend: the tokenizer of the package `tokenizers`.
        special_tokens: `bos_token`, `eos_token` and the like → their text.
        templates: chat templates by name; empty if conversations cannot be rendered.
        stop_ids: ids at which generation with this model ends.
        arguments: variables of the chat template by name (`data.chat_template_kwargs`).
        vocabulary: number of rows of the model's embedding; None if it is not known.
        now: the date and time that templates can read; None is the current one.

    Attributes:
        stop_ids: ids at which generation ends; the end of a turn is learned only if one of them is trained on.
        stop_texts: the texts of these ids.
        append_id: the tokenizer's end of sequence, which is appended to plain text; None if it has none.
        pad_id: pads batches; never one of `stop_ids`. Padding is kept out of attention and loss by position,
            not by comparing ids, so a token that also occurs in text does no harm.
        start_ids: ids that the tokenizer puts before plain text: a BOS token, or none.
        special_texts: texts of special tokens; a row that contains one is tokenised to that token.
        special_token_finder: finds those among them that split a text.
        notes: warnings about the tokenizer for the provider.
        cuts_texts: whether words are looked up, so that tokenising is the interpreter's work.
    """

    def __init__(
        self,
        backend: Tokenizer,
        special_tokens: Mapping[str, str],
        templates: Mapping[str, str],
        stop_ids: frozenset[int] = frozenset(),
        *,
        arguments: Mapping[str, TemplateArgument] = MappingProxyType({}),
        vocabulary: int | None = None,
        now: datetime | None = None,
    ) -> None:
        self._backend = backend
        self._backend.no_truncation()
        self._backend.no_padding()
        named = {name: backend.token_to_id(text) for name, text in special_tokens.items()}
        self.append_id: int | None = named.get("eos_token")
        self.stop_ids = stop_ids | ({self.append_id} if self.append_id is not None else set())
        self.stop_texts = tuple(filter(None, map(backend.id_to_token, sorted(self.stop_ids))))
        self.vocabulary = vocabulary
        for id_ in sorted(self.stop_ids):
            self.require_embedded(id_, "the end of a text or turn")
        candidates = (named.get("pad_token"), named.get("unk_token"), *range(self.size))
        # A padding token that was added to the tokenizer alone has no row in the embedding.
        usable = (
            id_
            for id_ in candidates
            if id_ is not None and (vocabulary is None or id_ < vocabulary)
        )
        padding = (id_ for id_ in usable if id_ not in self.stop_ids)
        if (pad_id := next(padding, None)) is None:
            raise JobError(
                ErrorCode.MODEL_INVALID,
                "no token of the tokenizer could pad",
                expected="one",
                found=0,
            )
        self.pad_id: int = pad_id
        self.start_ids = self._find_start()
        added = [
            (id_, token)
            for id_, token in sorted(backend.get_added_tokens_decoder().items())
            if token.special
        ]
        special_texts = (*special_tokens.values(), *(token.content for _, token in added))
        self.special_texts = tuple(dict.fromkeys(special_texts))
        # Only tokens that match literally at every position: the others depend on the text around them.
        self.special_token_finder = SpecialTokenFinder(
            {
                token.content: id_
                for id_, token in added
                if not (token.normalized or token.lstrip or token.rstrip or token.single_word)
            }
        )
        self.notes: tuple[str, ...] = ()
        self._texts, self._short = TextTokenizer(backend), dict[str, Ids]()
        self.cuts_texts = self._texts.cuts
        moment = datetime.now().astimezone() if now is None else now
        self._template: ChatTemplate | None = None
        if "default" in templates:
            self._template = ChatTemplate(
                templates, special_tokens, now=moment, arguments=arguments
            )
        require_read(self._template, arguments)

    @property
    def size(self) -> int:
        """Number of tokens, those included that were added to the vocabulary."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered."""
        return self._template is not None

    @property
    def marks_generation(self) -> bool:
        """Whether the chat template marks what the assistant generates."""
        return self._template is not None and self._template.marks_generation

    def ids(self, text: str) -> list[int]:
        """Tokenises a text. Special tokens written in it are recognised; none are added."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def ids_of(self, texts: Sequence[str]) -> list[Ids]:
        """Tokenises each text separately, on all cores."""
        return self._texts.ids_of(texts)

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenises each text separately, as `ids_of`, and says where special tokens are if that is known."""
        return self._texts.tokenize(texts)

    def lookup(self, texts: Iterable[str]) -> Mapping[str, Ids]:
        """Tokenises each text separately; the ids of short texts are cached, because they recur."""
        distinct = set(texts)
        new = sorted(text for text in distinct if text not in self._short)
        found = dict(zip(new, self.ids_of(new), strict=True))
        if len(self._short) < _MAX_CACHED_TEXTS:
            self._short.update(
                (text, ids) for text, ids in found.items() if len(text) <= CACHED_CHARACTERS
            )
        return {text: found[text] if text in found else self._short[text] for text in distinct}

    def text(self, ids: Sequence[int]) -> str:
        """Decodes token ids, including special tokens."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    @property
    def template(self) -> ChatTemplate:
        """The chat template.

        Raises:
            TemplateRefusedError: there is none.
        """
        if self._template is None:
            raise TemplateRefusedError
        return self._template

    @cached_property
    def next_turn_stops(self) -> NextTurnStops:
        """Finds the end of a turn that the chat template does not write.

        Raises:
            TemplateRefusedError: there is no chat template.
        """
        stops = (
            text for text, id_ in self.special_token_finder.ids.items() if id_ in self.stop_ids
        )
        return NextTurnStops(self.template, stops)

    def require_embedded(self, id_: int, use: str = "a row") -> None:
        """Requires that a token id has a row in the model's embedding; `use` says for what, in the message.

        Raises:
            JobError: `MODEL_INVALID`.
        """
        if self.vocabulary is not None and not 0 <= id_ < self.vocabulary:
            raise JobError(
                ErrorCode.MODEL_INVALID,
                f"tokenizer and base model do not fit: the token for {use} is outside the embedding",
                expected=f"token ids from 0 to {self.vocabulary - 1}",
                found=id_,
                hint="pin tokenizer and weights of one and the same model",
            )

    def _find_start(self) -> tuple[int, ...]:
        """Returns the ids that the tokenizer's post-processor puts before a text."""
        # A post-processor may add tokens before and after: the ids of a short text with them, less those without.
        plain = self.ids("a")
        framed = list(self._backend.encode("a", add_special_tokens=True).ids)
        for start in range(len(framed) - len(plain) + 1):
            if framed[start : start + len(plain)] == plain:
                return tuple(framed[:start])
        return ()
