"""Groups of ImageNet's 1,000 classes, in their usual order: 16 categories, and the 9 classes of ImageNet-9.

Both are parts of published protocols. The 16 categories of everyday objects are those of Geirhos et al., "Generalisation
in humans and deep neural networks" (NeurIPS 2018), with which texture and shape are compared; ImageNet-9 is of Xiao
et al., "Noise or signal: the role of image backgrounds in object recognition" (ICLR 2021). Most classes are in none.
"""

import numpy as np

IMAGENET_CLASSES = 1000

# Indices of ImageNet's classes by category, in alphabetical order.
_CATEGORIES = {
    "airplane": "404",
    "bear": "294-297",
    "bicycle": "444 671",
    "bird": "8 10-16 18-20 22-24 80-83 87-96 98-100 127-133 135-145",
    "boat": "472 554 625 814 914",
    "bottle": "440 720 737 898-899 901 907",
    "car": "436 511 817",
    "cat": "281-286",
    "chair": "423 559 765 857",
    "clock": "409 530 892",
    "dog": "152-191 193-203 205-226 228-241 243-250 252-257 259 261-263 265-268",
    "elephant": "385-386",
    "keyboard": "508 878",
    "knife": "499",
    "oven": "766",
    "truck": "555 569 656 675 717 734 864 867",
}
# Likewise by the class of ImageNet-9, in its order.
_IN9 = {
    "dog": "151-170 173-268",
    "bird": "7-24 87-100 127-146",
    "wheeled vehicle": "407-408 428 436 444 468 511 547 555 561 565 569 573 586 603 609 612 627 656 661 665 670-671 "
    "675 690 705 717 734 751 757 791 802-803 817 820 829 847 864 866-867 870 880",
    "reptile": "33-68",
    "carnivore": "269-280 286-299 356-362 387-388",
    "insect": "300-326",
    "musical instrument": "401-402 420 432 486 494 513 541 546 558 566 577 579 593-594 641-642 683-684 687 699 776 "
    "822 875 881 889",
    "primate": "365-384",
    "fish": "0-6 389-397",
}


def _indices(ranges: str) -> list[int]:
    ends = [entry.partition("-") for entry in ranges.split()]
    return [index for first, _, last in ends for index in range(int(first), int(last or first) + 1)]


CATEGORIES = {name: _indices(ranges) for name, ranges in _CATEGORIES.items()}
IN9_CLASSES = tuple(_IN9)


def to_in9() -> np.ndarray:
    """The class of ImageNet-9 of each of ImageNet's: int [1000]; −1 for a class that is in none."""
    classes = np.full(IMAGENET_CLASSES, -1)
    for number, ranges in enumerate(_IN9.values()):
        classes[_indices(ranges)] = number
    return classes
