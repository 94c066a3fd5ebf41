"""A policy directory as a completer of chats, on the rollout engine."""

from collections.abc import Callable, Sequence

from agenticrec_jax.agent.episodes import turn_finish
from agenticrec_jax.errors import InputError
from agenticrec_jax.generation.engine import Engine, Reply, Request, Rollout
from agenticrec_jax.language.completion import ASSISTANT, Chat, Decoding, OnText
from agenticrec_jax.tokenizers.base import BROKEN, TURN_END, TURN_START, Tokenizer
from agenticrec_jax.types import CALLED, STOP

STEP = 128  # longest prompts are rounded up to a multiple of it, so that few engines are made

MakeEngine = Callable[[int, int], Engine]
"""(tokens of the longest prompt, most tokens of a completion) -> engine."""


class PolicyCompleter:
    """Completes chats with a policy.

    A chat that has grown beyond the model's context, because of what the model wrote in it, is
    completed by an empty text. The randomness of a completion depends on seed and key alone.

    Args:
      params: parameters of the policy.
      tokenizer: of the policy.
      make_engine: makes an engine of the needed size.
      context: most tokens of prompt and completion together.
      name: path of the policy, for errors.
      weights: hash of its weights.
      seed: of sampling.
    """

    def __init__(
        self,
        params,
        tokenizer: Tokenizer,
        make_engine: MakeEngine,
        *,
        context: int,
        name: str,
        weights: str,
        seed: int = 0,
    ):
        self.identity = f"policy {weights}, seed {seed}"
        self._params = params
        self._tokenizer = tokenizer
        self._make_engine = make_engine
        self._context = context
        self._name = name
        self._seed = seed
        self._engines: dict[tuple[int, int], Engine] = {}

    def complete(
        self, chats: Sequence[Chat], decoding: Decoding, on_text: OnText | None = None
    ) -> list[str]:
        """Returns the text of the assistant's next turn in each chat; see `Completer`."""
        texts = [""] * len(chats)
        prompts = {i: self._prompt(chat) for i, chat in enumerate(chats)}
        rows = [i for i, prompt in prompts.items() if prompt]

        def ended(request: int, member: int, rollout: Rollout) -> None:
            del member
            texts[rows[request]] = self._text(rollout)
            if on_text:
                on_text(rows[request], texts[rows[request]])

        if rows:
            longest = max(len(prompts[i]) for i in rows)
            self._engine(longest, decoding.max_tokens).generate(
                self._params,
                [Request(tuple(prompts[i]), 1, chats[i].key) for i in rows],
                self._respond,
                temperature=decoding.temperature,
                seed=self._seed,
                on_rollout=ended,
            )
        for i in sorted(set(prompts) - set(rows)):
            if on_text:
                on_text(i, "")
        return texts

    def _prompt(self, chat: Chat) -> list[int]:
        """Returns the ids of a chat; none for one that has grown too long."""
        ids = chat_ids(self._tokenizer, chat)
        if len(ids) < self._context:
            return ids
        if any(role == ASSISTANT for role, _ in chat.turns):
            return []
        raise InputError(
            f"policy {self._name}: found a prompt of {len(ids)} tokens, expected fewer than the "
            f"model's context of {self._context}; show fewer words of a title or less history"
        )

    def _engine(self, prompt_tokens: int, max_tokens: int) -> Engine:
        """Returns an engine for prompts of this length; the longest one yet where it fits."""
        max_tokens = min(max_tokens, self._context - 1)
        fitting = [size for size in self._engines if size[0] >= prompt_tokens]
        fitting = [size for size in fitting if size[1] == max_tokens]
        if not fitting:
            longest = min(-(-prompt_tokens // STEP) * STEP, self._context - 1)
            size = (longest, max_tokens)
            # Each engine has a cache of its own on the device: the smaller one is given up.
            self._engines = {size: self._make_engine(longest, max_tokens)}
            fitting = [size]
        return self._engines[fitting[0]]

    def _respond(self, request: int, member: int, ids: Sequence[int]) -> Reply:
        """Ends a rollout that pauses, at the end of its turn or at a tool call."""
        del request, member
        tokenizer = self._tokenizer
        return Reply((), turn_finish(tokenizer, ids[-1], tokenizer.decode(ids)))

    def _text(self, rollout: Rollout) -> str:
        ended = rollout.finish in (STOP, CALLED)
        text = self._tokenizer.decode(rollout.ids[:-1] if ended else rollout.ids)
        return text.rstrip(BROKEN).strip()


def chat_ids(tokenizer: Tokenizer, chat: Chat) -> list[int]:
    """Returns the ids of a chat and of the beginning of the assistant's turn.

    They are those of Qwen3's chat template for a tokenizer of a chat. The compact tokenizer has two
    markers for turns, of which a system turn takes the user's. Texts are encoded as data.
    """
    markup = tokenizer.encode_markup
    if tokenizer.prompt_style == "compact":
        ids = []
        for role, text in chat.turns:
            ids.append(tokenizer.marker("<assistant>" if role == ASSISTANT else "<user>"))
            ids += tokenizer.encode_data(f" {text}")
        return [*ids, tokenizer.marker("<assistant>")]
    ids = [*tokenizer.prefix]
    for role, text in chat.turns:
        ids += [*markup(f"{TURN_START}{role}\n"), *tokenizer.encode_data(text)]
        ids += markup(f"{TURN_END}\n")
    return [*ids, *markup(f"{TURN_START}assistant\n")]
