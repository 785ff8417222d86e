"""How the servers that hold the labels of a test set want predictions to be named and coded."""

from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Submission:
    """Predicted masks as PNG files in one folder.

    Attributes:
        folder: Their folder, relative to where predictions are written.
        values: The number that stands in the file for each class; None: the number of the class, in a palette image.
        image_ending: What the names of images end in before their suffix, and those of predictions do not.
        ending: What the names of predictions end in instead.
    """

    folder: str
    values: tuple[int, ...] | None = None
    image_ending: str = ""
    ending: str = ""

    def path(self, file: str) -> str:
        """The path of a prediction for the image at the path `file`, relative to where predictions are written."""
        return f"{self.folder}/{PurePosixPath(file).stem.removesuffix(self.image_ending)}{self.ending}.png"
