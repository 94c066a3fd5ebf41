"""An OpenAI-compatible endpoint as a completer of chats (extra ``endpoint``)."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from agenticrec_jax.errors import InputError, expect, shorten
from agenticrec_jax.language.completion import Chat, Decoding, OnText

PATH = "/chat/completions"
TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504)  # statuses after which a request is repeated
LONGEST_PAUSE = 60.0  # seconds


class Endpoint:
    """Completes chats by ``POST URL/chat/completions``, which OpenAI, vLLM and others serve.

    A request that fails in transport or by a transient status is repeated after a pause, which
    doubles each time; a ``Retry-After`` of the server takes its place. The body has the fields that
    every server knows: model, messages, temperature and max_tokens. Servers choose their own seed,
    so that only greedy completions can be repeated; `recorded.Recorded` keeps them all.

    Args:
      url: address up to the version, such as ``http://localhost:8000/v1``.
      model: name of the model.
      key: sent as the bearer token; none if empty.
      seed: a part of the identity, so that another seed makes new requests.
      parallel: requests at once.
      repeats: most repetitions of a request.
      pause: seconds before the first of them.
      timeout: seconds without a byte of an answer after which a request has failed.
      sleep: waits for seconds.

    Raises:
      InputError: the address is none of HTTP, or a value is out of range.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str = "",
        seed: int = 0,
        parallel: int = 8,
        repeats: int = 4,
        pause: float = 1.0,
        timeout: float = 300.0,
        sleep: Callable[[float], None] = time.sleep,
    ):
        where = "flag --endpoint"
        address = url.startswith(("http://", "https://"))
        expect(address, where, url, "an address that begins with http:// or https://")
        expect(bool(model), "flag --model", model, "the name of the endpoint's model")
        expect(parallel >= 1, "flag --parallel", parallel, "at least 1")
        self.url = url.rstrip("/").removesuffix(PATH)
        self.model = model
        self.identity = f"endpoint {self.url}, model {model}, seed {seed}"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._parallel = parallel
        self._repeats = repeats
        self._pause = pause
        self._timeout = timeout
        self._sleep = sleep

    def complete(
        self, chats: Sequence[Chat], decoding: Decoding, on_text: OnText | None = None
    ) -> list[str]:
        """Returns the text of the assistant's next turn in each chat; see `Completer`.

        Raises:
          InputError: the endpoint cannot be reached, refuses a request, or answers something else
            than a completion.
        """
        httpx = _library()
        texts = [""] * len(chats)
        try:
            client = httpx.Client(headers=self._headers, timeout=self._timeout)
        except ValueError as error:  # such as a key that no header can have
            raise InputError(f"endpoint {self.url}: cannot be called ({error})") from None
        pool = ThreadPoolExecutor(self._parallel)
        try:
            requests = {
                pool.submit(self._ask, client, self._body(chat, decoding)): i
                for i, chat in enumerate(chats)
            }
            failure = None
            for request in as_completed(requests):
                if request.cancelled():
                    continue
                if request.exception():
                    # Requests under way end and are handed on: they cost as much as the others.
                    failure = failure or request.exception()
                    for other in requests:
                        other.cancel()
                    continue
                i = requests[request]
                texts[i] = request.result()
                if on_text:
                    on_text(i, texts[i])
            if failure:
                raise failure
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()
        return texts

    def _body(self, chat: Chat, decoding: Decoding) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [{"role": role, "content": text} for role, text in chat.turns],
            "temperature": decoding.temperature,
            "max_tokens": decoding.max_tokens,
        }

    def _ask(self, client, body: dict[str, Any]) -> str:
        """Returns the text of one request, which is repeated where that can help."""
        httpx = _library()
        pause = self._pause
        for repetition in range(self._repeats + 1):
            try:
                response = client.post(self.url + PATH, json=body)
            except httpx.TransportError as error:
                reason = f"cannot be reached ({_reason(error)})"
                wait = pause
            except (httpx.InvalidURL, httpx.RequestError, ValueError, OSError) as error:
                raise InputError(f"endpoint {self.url}: cannot be called ({error})") from None
            else:
                if response.status_code == 200:
                    return self._text(response)
                reason = f"answered status {response.status_code} ({shorten(response.text)})"
                if response.status_code not in TRANSIENT:
                    raise InputError(f"endpoint {self.url}: {reason}, expected a completion")
                wait = _retry_after(response.headers.get("Retry-After"), pause)
            pause *= 2
            if repetition < self._repeats:
                self._sleep(min(wait, LONGEST_PAUSE))
        tries = f"{self._repeats + 1} requests"
        raise InputError(f"endpoint {self.url}: {reason}, expected a completion within {tries}")

    def _text(self, response) -> str:
        """Returns the text of a chat completion; that of a refusal, which has none, is empty."""
        try:
            content = response.json()["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            content = 0
        if not isinstance(content, str | None):
            raise InputError(
                f"endpoint {self.url}: answered {shorten(response.text)}, expected JSON with "
                "choices[0].message.content"
            )
        return content or ""


def _retry_after(header: str | None, otherwise: float) -> float:
    """Returns the seconds of a ``Retry-After``; a date in it is not read."""
    try:
        seconds = float(header or "")
    except ValueError:
        return otherwise
    return seconds if seconds >= 0 else otherwise


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _library():
    """Returns httpx2, which only an endpoint needs."""
    try:
        import httpx2
    except ImportError:
        raise InputError(
            "flag --endpoint: found no package httpx2, expected the extra endpoint: "
            'pip install "agenticrec-jax[endpoint]"'
        ) from None
    return httpx2
