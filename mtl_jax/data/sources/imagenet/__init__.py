"""What the data sets of images of ImageNet share: layouts, classes, pixels."""
