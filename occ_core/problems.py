"""The kinds of problems with what drivers send, each with its cause and its cure, in the words that all tools print.

Node, bag reader and `occ bag check` name a problem by the same kind; docs/troubleshooting.md goes through them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from occ_core.errors import InvalidInput


class Kind(NamedTuple):
    """Why a problem occurs, and what helps."""

    cause: str
    cure: str


KINDS: dict[str, Kind] = {
    # --- calibration
    "no CameraInfo": Kind(
        "the driver has no calibration, or publishes it under another name",
        "let the driver publish camera_info beside the images, or describe the rig in a file (rig_file; rig.yaml "
        "beside a bag)",
    ),
    "uncalibrated": Kind(
        "the driver found no calibration file and publishes zeros",
        "calibrate the camera (camera_calibration) and give its driver the file, or describe the rig in a file",
    ),
    "distortion": Kind(
        "distortion_model and the number of coefficients D do not go together",
        "publish plumb_bob or rational_polynomial with 4, 5, 8, 12 or 14 coefficients, or equidistant with 4",
    ),
    "calibration": Kind("the numbers of CameraInfo are those of no lens", "calibrate the camera again"),
    "centre": Kind(
        "K was not filled in, is in other units, or is of another image",
        "calibrate the camera again; if its images are cut out of larger ones, nothing needs to be done",
    ),
    "folds": Kind(
        "the calibration's pictures did not reach the image's corners, or D is of another lens",
        "calibrate again with the board in the corners, or as a fisheye (equidistant)",
    ),
    "rectification": Kind(
        "a topic of rectified images needs R and P, and CameraInfo has no such numbers",
        "calibrate as a stereo pair, or take the topic of unrectified images",
    ),
    "camera frame": Kind("CameraInfo names no frame", "set the driver's parameter frame_id or camera_frame_id"),
    "size": Kind(
        "calibrated at another resolution, or images are scaled or cropped on their way",
        "calibrate at the resolution that is recorded, or publish binning and roi in CameraInfo",
    ),
    # --- images
    "depth": Kind(
        "the topic holds distances, not colours", "leave it out (--exclude), and record the colour camera beside it"
    ),
    "infrared": Kind(
        "the topic is of an infrared or thermal camera; networks here learned from colours",
        "leave it out (--exclude), or ask for it by name (--camera)",
    ),
    "bits": Kind("the driver publishes more than 8 bits a sample", "set the driver to an 8-bit encoding"),
    "encoding": Kind("the encoding is none that is known here", "set the driver to rgb8, bgr8, mono8 or bayer_*8"),
    "file": Kind(
        "the topic holds files of another kind, or a video",
        "record image_transport's compressed topic (JPEG or PNG), or republish it as that",
    ),
    "blank": Kind(
        "a lens cap, a cable that came off, or a driver that fills in for missing images", "look at the pictures"
    ),
    "frozen": Kind(
        "the driver sends its last image again and again, or the camera hangs", "restart the driver, and record again"
    ),
    "twins": Kind("two topics carry the images of one camera", "look at the topics' names in the driver"),
    "mosaic": Kind(
        "grey pixels with the pattern of a colour filter: a Bayer mosaic that nothing names as one",
        "set the driver to a bayer_*8 encoding, or let image_proc make colours of it",
    ),
    "grey": Kind(
        "the camera or its driver changes its mode (day and night, encoding), or two cameras share the topic",
        "fix the mode in the driver; grey images are used, though networks learned from colours",
    ),
    "damaged image": Kind("cut short or damaged on its way or on disk", "look for losses in driver, network and disk"),
    # --- time
    "no stamp": Kind("the driver leaves header.stamp zero", "let the driver stamp its images"),
    "clock": Kind(
        "the camera's clock is another one (PTP in TAI, time since its start), or its driver does not convert it",
        "synchronise the clocks, or let the driver stamp with the host's time",
    ),
    "late": Kind(
        "images reach the recorder long after their stamps, or the camera's clock is behind",
        "compare the camera's clock with the host's; if it is right, nothing needs to be done",
    ),
    "offset": Kind(
        "images reach the recorder later than the others', or the camera's clock is off by that much",
        "compare the camera's clock with the host's (chrony, PTP); if it is right, nothing needs to be done",
    ),
    "wild stamp": Kind("single stamps far from those before and after", "look for a driver that resynchronises"),
    "repeated stamp": Kind("images with the stamp of another one", "let the driver stamp each image"),
    "few images": Kind(
        "the camera came late, died, or is far slower than the others", "look at its cable, power and frame rate"
    ),
    "gaps": Kind(
        "the camera is slower than the key camera, its images get lost, or they are stamped farther from its",
        "look at its rate and losses; sets are used without it (see max_spread_s)",
    ),
    # --- places
    "no images": Kind(
        "the camera was off, or its images were not recorded",
        "record its image topic, too, or leave its CameraInfo out",
    ),
    "place": Kind(
        "no chain of transforms leads from the vehicle to the frame that CameraInfo names",
        "publish the camera's mount on /tf_static (robot_state_publisher), with the names as CameraInfo has them",
    ),
    "transform": Kind(
        "a transform that is none: not a number, a quaternion of norm zero, no name, or a loop",
        "mend its publisher; links that no camera needs do no harm",
    ),
    "two parents": Kind(
        "two nodes publish transforms to one frame; a frame has one parent (REP 105)",
        "stop one of them; the link with most samples is used",
    ),
    "body frame": Kind(
        "CameraInfo names the camera's body (x forward), not its optical frame (z forward)",
        "publish the optical frame and name it in CameraInfo (REP 103), as in <name>_optical_frame",
    ),
    "frames": Kind(
        "CameraInfo was copied from another camera, or driver and calibration name different frames",
        "let CameraInfo and image name one optical frame; the one of CameraInfo is used",
    ),
    "one frame": Kind(
        "CameraInfo was copied from another camera, or two cameras were never placed",
        "let each CameraInfo name its camera's own optical frame",
    ),
    "side": Kind(
        "cables or topics of two cameras are swapped, or a mount is wrong", "compare the camera's picture with its name"
    ),
    "rolled": Kind("the camera is mounted so, or its mount is wrong", "if it is mounted so, nothing needs to be done"),
    "far": Kind("the transform is in millimetres, or its chain leads elsewhere", "publish mounts in metres (REP 103)"),
    "below": Kind(
        "the base frame is not on the ground: it lies in a sensor, or on the roof",
        "choose the frame on the ground (base_footprint) as base frame, or publish one",
    ),
    "sky": Kind(
        "the optical axis is nearly vertical",
        "look up the mount's rotation; a camera that looks down or up is used all the same",
    ),
    "odometry": Kind(
        "odometry that is none: no child_frame_id, child and parent alike, or no pose yet",
        "set child_frame_id to the base frame; without odometry or /tf the vehicle counts as standing still",
    ),
    "speed": Kind("poses are not in metres, or their stamps are of another clock", "publish poses in metres (REP 103)"),
    "jump": Kind(
        "a localisation that corrects itself, or odometry that started anew",
        "have poses in a frame without jumps: odom, not map (REP 105)",
    ),
    "another robot": Kind(
        "several robots publish transforms in namespaces of their own", "choose the robot by its cameras (--camera)"
    ),
    "damaged message": Kind("bytes that are not of the topic's type", "record the topic again"),
    # --- connections, live
    "no publisher": Kind("nobody publishes the topic", "compare the topic's name with the driver's (image_topic)"),
    "type": Kind("the topic is of another type", "choose the topic of that type (see transport)"),
    "qos": Kind(
        "publisher and node do not agree on QoS, so nothing is delivered", "change the QoS that the text names"
    ),
    "silent": Kind("the driver has stopped, or its messages get lost", "restart the driver; see Transport in docs"),
    "lost": Kind("the middleware's buffers are too small for images", "start the drivers with config/fastdds.xml"),
    "future": Kind("the clocks of two machines differ", "synchronise them (chrony, PTP)"),
    "old": Kind("driver or network holds images back", "look for queues in driver and network"),
    "two publishers": Kind(
        "a driver was started twice, a bag is played beside the robot, or another robot has the same topics",
        "stop one of them, or give it a namespace or a ROS_DOMAIN_ID of its own",
    ),
    "moves": Kind("two nodes publish the camera's mount, or another robot the same frames", "stop one of them"),
}


@dataclass(frozen=True)
class Problem:
    """Something that cannot be used as it is.

    Attributes:
        kind: one of `KINDS`.
        where: the topic, or topic and stamp.
        found: what was found, with value and limit.
    """

    kind: str
    where: str
    found: str

    @property
    def cause(self) -> str:
        return KINDS[self.kind].cause

    @property
    def cure(self) -> str:
        return KINDS[self.kind].cure

    def __str__(self) -> str:
        return f"'{self.where}': {self.found}" if self.where else self.found


class Unusable(InvalidInput):
    """A message, camera or topic cannot be used; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem

    def __reduce__(self):  # so that it passes from a worker process
        return Unusable, (self.problem,)


class Tally:
    """Counts what is left out: the first problem of each kind and place, and how many there were.

    Args:
        strict: the first problem is raised instead.
    """

    def __init__(self, strict: bool = False) -> None:
        self._strict = strict
        self._first: dict[tuple[str, str], Problem] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, problem: Problem, count: int = 1) -> None:
        if self._strict:
            raise Unusable(problem)
        self.note(problem, count)

    def note(self, problem: Problem, count: int = 1) -> None:
        """Like `add`, for things that are used all the same; nothing is raised."""
        key = problem.kind, problem.where
        self._first.setdefault(key, problem)
        self._counts[key] = self._counts.get(key, 0) + count

    def of(self, where: str) -> list[tuple[Problem, int]]:
        """The (first problem, count) of each kind at a place."""
        return [(problem, count) for problem, count in self if problem.where == where]

    def __iter__(self):
        return ((problem, self._counts[key]) for key, problem in self._first.items())

    def __len__(self) -> int:
        return len(self._first)
