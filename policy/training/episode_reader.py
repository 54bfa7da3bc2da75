"""Episodes of frames and instructions to train a drafter on, from wherever they come.

Actions are not among them: a drafter learns what its target does, and the target is asked. So any pictures of the
target's world serve, labelled or not. Knows the demonstration format, which folders are data sets of others, and how to
ask a stranger's code for episodes.
"""

from __future__ import annotations

import hashlib
import importlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from policy.openvla.config import IMAGE_SIDE
from policy.openvla.images import ImagePath, PreprocessorSettings, center_crop, decode_frame, sized_frame
from policy.openvla.resampling import lanczos_resize
from policy.training.camera_episode import CameraEpisode, CameraEpisodes
from policy.training.datasets.lerobot import LeRobotFolder
from policy.training.datasets.rlds import RLDSFolder
from policy.training.demonstrations import Demonstration, list_demonstrations
from policy.training.episode_choice import order_by_name

FRAME_SHAPE = (IMAGE_SIDE, IMAGE_SIDE, 3)


@dataclass(frozen=True, slots=True)
class FrameSource:
    """frames: a folder of demonstrations, a LeRobot data set, the version of an RLDS data set, or "module:function", an
        adapter.
    camera: which of a data set's cameras; may be left out where there is one.
    turned: whether a data set stores pictures turned by 180 degrees against what the camera gives to a policy. Left
        out, they are where the target is of LIBERO, as in all of LIBERO's published LeRobot and RLDS data sets.

    Demonstrations and adapters have one camera and know how it is turned.
    """

    frames: str
    camera: str | None = None
    turned: bool | None = None


@dataclass(frozen=True, slots=True)
class SizedEpisode:
    """frames: uint8 `[T, 224, 224, 3]`, as the network sees them but for normalisation."""

    name: str
    instruction: str
    frames: np.ndarray

    def digest(self) -> str:
        """Hexadecimal, of all of it: tells whether an episode is that of another run."""
        state = hashlib.blake2b(f"{self.name}\n{self.instruction}\n".encode(), digest_size=16)
        state.update(np.ascontiguousarray(self.frames).data)
        return state.hexdigest()


class EpisodeReader:
    """The episodes of a source, one by one and each time in the same order.

    wanted: by name, which episodes of a data set or adapter to take; all unless given. Demonstrations are files, of
        which whoever reads them can take what is wanted.
    total: how many there are, None where only reading tells. unlabelled: how many, or parts of how many, were passed
        over so far because they have no instruction, as some have in BridgeData V2 and DROID.
    Raises ValueError for a source that is none, for damaged files, and where no episode is left in the end.
    """

    def __init__(
        self,
        source: FrameSource,
        image_path: ImagePath,
        settings: PreprocessorSettings,
        processes: int,
        wanted: Callable[[str], bool] = lambda name: True,
    ) -> None:
        self._source, self._path, self._settings, self._wanted = source, image_path, settings, wanted
        self.total: int | None = None
        self.unlabelled = self._unwanted = 0
        folder = Path(source.frames)
        self._episodes: Callable[[], Generator[SizedEpisode, None, None]]
        check_options_fit(source)
        if is_data_set(folder):
            turned = image_path == "libero" if source.turned is None else source.turned
            data_set = (LeRobotFolder if LeRobotFolder.holds(folder) else RLDSFolder)(folder, source.camera)
            self.total = len(data_set) if isinstance(data_set, LeRobotFolder) else None
            prepare = stored_frame if turned else sized_frame
            self._episodes = lambda: self._sized(data_set.episodes(), prepare)
        elif folder.is_dir():
            check_demonstrations_fit(image_path)
            paths = demonstration_paths(folder)
            self.total = len(paths)
            self._episodes = lambda: _demonstration_episodes(paths, processes)
        else:
            adapter = _adapter(source.frames)
            self._episodes = lambda: self._sized(adapter(), sized_frame)

    def __iter__(self) -> Generator[SizedEpisode, None, None]:
        found = self.unlabelled = self._unwanted = 0
        with closing(self._episodes()) as episodes:  # at once, when whoever reads has enough
            for episode in episodes:
                if episode.instruction.strip():
                    found += 1
                    yield episode
                else:
                    self.unlabelled += 1
        if not found and not self._unwanted:
            raise ValueError(
                f"{self._source.frames} has no episode with frames and an instruction, and {self.unlabelled} without "
                "an instruction; a policy needs one"
            )

    def _sized(
        self,
        episodes: Iterable[CameraEpisode],
        prepare: Callable[[np.ndarray, ImagePath, PreprocessorSettings], np.ndarray],
    ) -> Generator[SizedEpisode, None, None]:
        """Those that are wanted and have frames; unlabelled ones without their frames."""
        for episode in episodes:
            if not self._wanted(episode.name):
                self._unwanted += 1
                continue
            if not episode.instruction.strip():
                yield SizedEpisode(episode.name, "", np.empty((0, *FRAME_SHAPE), np.uint8))
                continue
            frames = [prepare(np.asarray(image), self._path, self._settings) for image in episode.images]
            if frames:
                yield SizedEpisode(episode.name, episode.instruction, np.stack(frames))


def stored_frame(image: np.ndarray, path: ImagePath, settings: PreprocessorSettings) -> np.ndarray:
    """As `sized_frame`, of a picture uint8 `[H, W, 3]` that was stored turned by 180 degrees.

    The LIBERO path imitates such data sets: it turns and compresses what a camera gives, which was done to these
    pictures before they were stored. So only what follows is left to do, and a second JPEG is not put upon the first.
    """
    if path == "libero":
        return center_crop(lanczos_resize(image, IMAGE_SIDE))
    return sized_frame(image[::-1, ::-1], path, settings)


def demonstration_paths(folder: Path) -> list[Path]:
    """The demonstrations of a folder in an arbitrary but fixed order: whoever stops early has seen some of each task.

    The order stays when others join. Raises ValueError where there are none.
    """
    paths = list_demonstrations(folder)
    if not paths:
        versions = [str(path) for path in sorted(folder.iterdir()) if RLDSFolder.holds(path)]
        hint = f"give {versions[-1]}" if versions else "record some with scripts/collect_demos.py"
        raise ValueError(f"{folder} has no demonstrations and is no LeRobot or RLDS data set; {hint}")
    return sorted(paths, key=lambda path: order_by_name(path.name))


def is_data_set(folder: Path) -> bool:
    """Whether a folder is a LeRobot or RLDS data set, by its files."""
    return LeRobotFolder.holds(folder) or RLDSFolder.holds(folder)


def check_options_fit(source: FrameSource) -> None:
    """Raise ValueError where a camera, or how pictures are turned, is named for what is no data set."""
    if (source.camera, source.turned) != (None, None) and not is_data_set(Path(source.frames)):
        raise ValueError(
            f"camera {source.camera!r} and turned {source.turned} are for LeRobot and RLDS data sets, and "
            f"{source.frames!r} is neither; leave them out"
        )


def check_demonstrations_fit(image_path: ImagePath) -> None:
    """Raise ValueError where a target does not see the world as demonstrations are stored: turned and compressed."""
    if image_path != "libero":
        raise ValueError(
            f"the target's image path is {image_path!r}, and demonstrations are stored for 'libero', turned and "
            "compressed; give frames as its camera gives them, by an adapter, a LeRobot or an RLDS data set, see "
            "docs/drafters.md, or, where the target was trained on such pictures, the image path libero"
        )


def _demonstration_episodes(paths: Sequence[Path], processes: int) -> Generator[SizedEpisode, None, None]:
    """Some are read ahead, few of them: an episode takes tens of megabytes."""
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    rest = iter(paths)
    try:
        ahead: deque[Future[SizedEpisode]] = deque()
        ahead.extend(pool.submit(_read_demonstration, path) for path in islice(rest, 2 * processes))
        while ahead:
            episode = ahead.popleft().result()
            ahead.extend(pool.submit(_read_demonstration, path) for path in islice(rest, 1))
            yield episode
    finally:
        pool.shutdown(cancel_futures=True)


def _read_demonstration(path: Path) -> SizedEpisode:
    """Runs in a process of its own. The stored frames are those of the LIBERO path before the crop."""
    demonstration = Demonstration.load(path)
    frames = [center_crop(decode_frame(demonstration.frame_jpeg(step))) for step in range(len(demonstration))]
    return SizedEpisode(path.name, demonstration.meta.instruction, np.stack(frames))


def _adapter(source: str) -> CameraEpisodes:
    module, _, name = source.partition(":")
    try:
        if not name:
            raise ValueError("no such folder")
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"frames are {source!r}; they must be a folder (demonstrations, a LeRobot or an RLDS data set) or "
            f"'module:function' that yields CameraEpisode: {error}"
        ) from error
    return found
