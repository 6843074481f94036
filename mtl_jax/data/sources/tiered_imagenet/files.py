"""Finds the published files of tiered-ImageNet, in one of several layouts.

See docs/tiered_imagenet.md for the layouts.
"""

from mtl_jax.data.sources.imagenet import files

LISTS = ('use the lists of Ren et al. (2018): '
         'fewshot/data/tiered_imagenet_split of '
         'github.com/renmengye/few-shot-ssl-public')
WHAT_TO_PUT = (
    '{train,val,test}_images_png.pkl and {train,val,test}_labels.pkl, or '
    '{train,val,test}_images.npz and {train,val,test}_labels.pkl, or folders '
    '{train,val,test}/WNID/*.jpg, or the training images of ILSVRC-2012 '
    '(WNID/*.JPEG, or ILSVRC2012_img_train.tar)')


def find(top, wanted, names):
  """Finds the first complete layout: see files.find of imagenet."""
  del names
  return files.find(top, wanted, (files.class_folders,))
