"""Prints, method by network, the largest difference between onnxcam's maps and pytorch-grad-cam's: `python table.py`.

Over every golden that `test_parity.py` compares: the largest |values - golden| of maps in [0, 1]. Variants (other
targets, smoothing, several layers) are in their method's row; `maps` says how many it stands for.
"""

from test_parity import MAPS, NETWORKS, compared


def main() -> None:
    worst: dict[tuple[str, str], float] = {}
    count: dict[str, int] = {}
    for method, network, difference, maps in differences():
        worst[method, network] = max(worst.get((method, network), 0.0), difference)
        count[method] = count.get(method, 0) + maps
    networks = list(NETWORKS)
    print("| method | maps |", " | ".join(networks), "|")
    print("|---|--:|", "--:|" * len(networks), sep="")
    for method in count:
        cells = (f"{worst[method, n]:.0e}" if (method, n) in worst else "" for n in networks)
        print(f"| {method} | {count[method]} |", " | ".join(cells), "|")
    print(f"\n{sum(count.values())} maps, largest difference {max(worst.values()):.1e}")


def differences() -> list[tuple[str, str, float, int]]:
    """Method, network, largest difference and number of maps of every golden."""
    found = []
    for parameters in MAPS:
        network, recipe = parameters.values
        pairs = [abs(values - golden).max() for _, values, golden in compared(network, recipe)]
        found.append((recipe["method"], network, float(max(pairs)), len(pairs)))
    return found


if __name__ == "__main__":
    main()
