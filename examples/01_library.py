"""The same with the library: a preset, a run, samples and figures."""

import drifting


def main(save_dir="runs/example"):
    """Train a short run, sample from it in one pass and measure it."""
    config = drifting.preset("toy", dataset="eight_gaussians", steps=500, batch_size=512)
    run = drifting.train(config, save_dir, overwrite=True)
    points = run.sample(1000, seed=0)  # float32 [1000, 2]
    print(points.shape, [str(picture) for picture in run.pictures])
    for name, value in run.evaluate().items():
        print(name, value)


if __name__ == "__main__":
    main()
