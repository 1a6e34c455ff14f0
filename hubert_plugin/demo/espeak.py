"""eSpeak NG through ctypes: text to speech with the exact times of its phones.

eSpeak NG is free software under the GNU General Public License, version 3 or later. It is not part of this package: it
comes with ``espeakng-loader``, which only the extra ``demo`` asks for, and it is loaded **only in worker processes**
(:mod:`hubert_plugin.demo._worker`) that exchange text and numbers with the rest through pipes. Nothing else in the
package may import this module.

Facts about libespeak-ng 1.52 that the code below answers to:

- All its state is global: one engine a process, one call at a time.
- Noise is drawn from a generator that differs from run to run unless ``espeak_ng_SetRandSeed`` is called; that of
  voices with ``breath`` (Reed, caleb) from the C library's ``rand``, which goes on from one sentence to the next.
- Wave phases survive between calls and even ``espeak_Terminate``, so what a sentence sounds like depends on what was
  said before. Unloading the library, in under a millisecond, is the cheap reset.
- ``espeak_Initialize`` fails, with 0, where the path of its data has more than about 140 characters. It is therefore
  given the path ``"."``, with the data's folder as working directory: the process must not need its own.
"""

from __future__ import annotations

import _ctypes
import ctypes as C
import os
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.errors import HubertError, MissingDependencyError

_EVENT_END: Final = 0
_EVENT_WORD: Final = 1
_EVENT_PHONEME: Final = 7

_OUTPUT_SYNCHRONOUS: Final = 2
_INIT_PHONEME_EVENTS: Final = 1
_INIT_DONT_EXIT: Final = 0x8000
_CHARS_UTF8: Final = 1

_PARAM_WPM: Final = 1
_PARAM_VOLUME: Final = 2
_PARAM_PITCH: Final = 3
_PARAM_PITCH_RANGE: Final = 4

_VOLUME: Final = 60
"""Of 100, the default, at which some voices clip."""


class _Event(C.Structure):
    """``espeak_EVENT`` of speak_lib.h, API revision 12."""

    _fields_ = (
        ("type", C.c_int),
        ("unique_identifier", C.c_uint),
        ("text_position", C.c_int),
        ("length", C.c_int),
        ("audio_position", C.c_int),
        ("sample", C.c_int),
        ("user_data", C.c_void_p),
        ("id", C.c_char * 8),
    )


_SynthCallback = C.CFUNCTYPE(C.c_int, C.POINTER(C.c_short), C.c_int, C.POINTER(_Event))


@dataclass
class Speech:
    """What the engine said."""

    pcm: NDArray[np.int16]
    """*Shape:* (n,)."""

    phones: list[tuple[str, int]] = field(default_factory=list)
    """eSpeak's phone names and the sample at which each begins."""

    words: list[tuple[int, int]] = field(default_factory=list)
    """The position of each word's first character in the text and the sample at which the word begins."""


class Espeak:
    """libespeak-ng in a known state; a context manager that unloads it at the end."""

    sample_rate: int
    """Of the speech, in Hz: 22,050."""

    def __init__(self) -> None:
        """
        :raises MissingDependencyError: The library is not installed or does not load.
        :raises HubertError: The library finds no data.
        """
        try:
            import espeakng_loader

            data_path = espeakng_loader.get_data_path()

            self._path: str = espeakng_loader.get_library_path()

            lib: Any = C.CDLL(self._path)
        except (ImportError, OSError, RuntimeError) as ex:
            raise MissingDependencyError(
                f"The speech synthesiser of `espeakng-loader` cannot be loaded: {ex}. Install it anew with `pip "
                "install --force-reinstall espeakng-loader`."
            ) from ex

        lib.espeak_Initialize.argtypes = [C.c_int, C.c_int, C.c_char_p, C.c_int]
        lib.espeak_SetVoiceByName.argtypes = [C.c_char_p]
        lib.espeak_Synth.argtypes = [
            C.c_char_p,
            C.c_size_t,
            C.c_uint,
            C.c_int,
            C.c_uint,
            C.c_uint,
            C.c_void_p,
            C.c_void_p,
        ]

        os.chdir(os.path.dirname(data_path))

        self.sample_rate = lib.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 500, b".", _INIT_PHONEME_EVENTS | _INIT_DONT_EXIT)
        if self.sample_rate <= 0:
            raise HubertError(
                f"The speech synthesiser of `espeakng-loader` finds no usable data in '{data_path}'. Install it anew "
                "with `pip install --force-reinstall espeakng-loader`."
            )

        self._lib = lib

        self._libc: Any = C.CDLL(None) if os.name == "posix" else C.CDLL("msvcrt")

        self._chunks: list[NDArray[np.int16]] = []

        self._speech = Speech(np.zeros(0, np.int16))

        # Kept in the object, or else Python would free it under the library's feet.
        self._callback = _SynthCallback(self._on_audio)

        lib.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, voice: str, *, wpm: int, pitch: int, pitch_range: int, seed: int) -> Speech:
        """Speak ``text``.

        :param voice: A language and a variant, for example ``en-us+f2``.
        :param wpm: Words a minute. ``pitch`` and ``pitch_range`` run from 0 to 100.
        :param seed: Of the engine's noise, from 0 to 2**31 - 1.
        """
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise HubertError(
                f"The speech synthesiser has no voice '{voice}'. Install `espeakng-loader` 0.2.4 or a later version."
            )

        for parameter, value in (
            (_PARAM_WPM, wpm),
            (_PARAM_PITCH, pitch),
            (_PARAM_PITCH_RANGE, pitch_range),
            (_PARAM_VOLUME, _VOLUME),
        ):
            self._lib.espeak_SetParameter(parameter, value, 0)

        self._lib.espeak_ng_SetRandSeed(C.c_long(seed))

        self._libc.srand(C.c_uint(seed))

        self._chunks = []

        self._speech = speech = Speech(np.zeros(0, np.int16))

        data = text.encode() + b"\0"

        if self._lib.espeak_Synth(data, len(data), 0, 0, 0, _CHARS_UTF8, None, None) != 0 or not self._chunks:
            raise HubertError(f"The speech synthesiser could not say '{text}' with the voice '{voice}'.")

        speech.pcm = np.concatenate(self._chunks)

        return speech

    def close(self) -> bool:
        """Unload the library; return whether it is gone and the next engine starts afresh."""
        self._lib.espeak_Terminate()

        unload = getattr(_ctypes, "dlclose", None) or getattr(_ctypes, "FreeLibrary", None)
        if unload is None:
            return False

        unload(self._lib._handle)

        return not _is_loaded(self._path)

    def __enter__(self) -> Espeak:
        return self

    def __exit__(
        self, kls: type[BaseException] | None, ex: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _on_audio(self, wave: Any, num_samples: int, events: Any) -> int:
        if wave and num_samples > 0:
            self._chunks.append(np.ctypeslib.as_array(wave, (num_samples,)).copy())

        i = 0

        while events[i].type != _EVENT_END:
            event = events[i]

            if event.type == _EVENT_PHONEME:
                # The name may fill all eight bytes and then has no terminator.
                name = C.string_at(C.addressof(event) + _Event.id.offset, 8).split(b"\0")[0]

                self._speech.phones.append((name.decode(), event.sample))
            elif event.type == _EVENT_WORD:
                self._speech.words.append((event.text_position - 1, event.sample))

            i += 1

        return 0


def _is_loaded(path: str) -> bool:
    """Return whether the library is still in this process (musl's ``dlclose`` for one keeps it)."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return False

    try:
        library = C.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False

    _ctypes.dlclose(library._handle)  # type: ignore[attr-defined,unused-ignore]

    return True
