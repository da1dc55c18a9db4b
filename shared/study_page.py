"""docs/studies.md out of the schemas' own descriptions: `python -m shared.study_page > docs/studies.md`."""

from __future__ import annotations

from shared.profile import Profile
from shared.schema_page import tables
from shared.study import Study

_INTRODUCTION = """# Studies and site profiles

A study says what is trained: one YAML in `configs/`. It travels, and a hospital approves it by its digest, which is SHA-256 over the
RFC 8785 form of the study with every default filled in. A site profile says who trains: `profile.yaml` in the hospital's folder. It is
never sent.

    consilium-server check configs/*.yaml                    # is a study valid, and what does it cost a round?
    consilium-site check sites/demo/anna --study configs/demo.yaml   # what does this hospital have for it?

No key does nothing, and an unknown key is an error with its line and the nearest right one. What a paper says beside what its study does is
in `docs/studies/`.

A private study has a chapter of its own, [below](#a-private-study).

This page is made from the schemas by `python -m shared.study_page > docs/studies.md`; a test holds them together.

# One study, several layouts

A study runs in a second domain by another profile alone. What has to hold:

- `task.classes` lists the labels of every layout that the study is for ([layouts.md](layouts.md) has them). A label that a layout does not
  know does no harm; a record whose label stands in no class is left out and counted.

      classes:                                            # ham10000, isic2019, DermaMNIST
        benign: [nv, bkl, df, vasc]
        malignant: [mel, bcc, akiec, ak, scc]

- `task.unit` is one that every layout has: all but cbis_ddsm have `image`; cbis_ddsm, busi, dicom_folder and image_folder have `view`.
- `data.select` names attributes that every layout has, or nothing; `division: official` needs a published test part.
- `preprocessing.region: finding` needs masks everywhere; `intensity: region_percentiles` makes 8-bit photographs and 12-bit mammograms
  alike.

`configs/busi_resnet18.yaml` is such a study: with `sites/busi/baheya` it runs on breast ultrasound, with `sites/demo/anna` on mammograms.

# Labels that no class lists

`task.hierarchy` says which label stands above which. A label that no class lists is taken to the class of its nearest ancestor that one
lists; so a hospital with finer diagnoses takes part without changing its tables:

    classes:
      mel: [mel]
      bkl: [bkl]
      unk: [unk, benign, malignant, indeterminate]    # whatever else there is
    hierarchy: isic                                   # or label: label above it, one a line

`isic` is written out when the study is read, so that the digest covers every line of it; `shared/diagnosis_vocabularies.py` has the sources
and says what is a matter of opinion. To decide otherwise, list the label in a class: the nearest one counts. Words of a hospital's own go
into its profile (`data.labels`), which is never sent. `consilium-site check` and `review` count every label that was taken somewhere.

# Descriptors of lesions

Beside the class a network can learn descriptors (shape, margin, ...): for each a linear head on the same features.

    task:
      descriptors:
        shape:
          attributes: [shape, mass_shape]             # columns of the hospital's table, or attributes of the layout
          values: {irregular: [], oval: [oval], round: [round]}
    training:
      descriptor_weight: 0.5

An image's loss is that of its class plus `descriptor_weight` times the mean, over all descriptors, of their cross-entropies; one that the
image lacks counts as 0. It depends on that image alone, so descriptors may stand in a private study: the gradient of all heads together is
clipped and noised. Figures of each descriptor leave in plain studies only (none of fewer test images than the minimum cell); where counts
leave with noise, they stay in the hospital's own page.

# Copies of one image

With `data.duplicates: {}` each hospital looks for images that it holds more than once, under other names, patients or labels: saved again,
scaled, or with other marks on them. They are told by perceptual hash, `distance` of 256 bits apart at most (or copies of a copy). One of
them takes part, the one whose key comes first; none does where their classes differ: those are named in the hospital's log. Who is in which
part is decided before, so nobody else changes part, and `data.balanced` may draw an image that is left out afterwards. What was left out is
counted in the report. With `across: report` the report also says how many images each two hospitals both hold, which nobody can look up
([how, and what each learns](decisions/0013-duplicates-across-hospitals.md)); none of these is left out. The distance was measured (same
page): 20 keeps different lesions of a dermoscopy collection apart and finds the copies in BUSI.

# What becomes of the pixels

In this order, the first seven once for the cache, the others for each batch on the device:

1. `remove: [borders, vignette]`: the image is cut to what it shows, and its masks alike
2. `region`, `margin`: the square that is cut out
3. `intensity`: to [0, 1]
4. `remove: [hair, ruler]`: thin dark lines are filled from the skin beside them, at 512 pixels a side at most
5. `size`: resampling
6. `denoise`: `median`, `bilateral` or `nlm`
7. `clahe`: equalisation of local contrast
8. `augmentation`, of training images only: flips, turns and movement, then distortion, blur, brightness and contrast, then black squares
9. `normalise` by public constants, or `layer_normalise` by each image's own mean and deviation

Each step looks at one image alone, so that all of it may stand in a private study. `consilium-site contrast PROFILE --study STUDY` measures
what 6 and 7 do to a hospital's images; the hospital's own page of a run has the same table. CLAHE raises noise with everything else, and a
calcification that was bright against a dark breast can lose against surroundings that were raised too: look before you ask for it.

# The lesion's mask as one more plane

With `preprocessing.mask` each image has one plane more, behind its channels, that is 1 on the lesion and 0 elsewhere: a network that
classifies gets it as one more channel of its input.

```yaml
preprocessing:
  mask: {from: annotated}          # the hospital's own mask files, all of an image's together
```

```yaml
preprocessing:
  mask:
    from: model                    # predicted by a segmentation network, once, when the image is prepared
    threshold: 0.5
    weights:
      file: outlines.safetensors   # from `consilium-server export`: the file says itself which study's network it holds
      sha256: 8a0f...
      source: run outlines-3 of study ham10000-outlines, after round 20
      origin: federation
```

The mask goes the way of its image: cut, padded (nothing marked) and resized, then 1 where at least half of a pixel is marked, or where the
network's probability reaches `threshold`; augmentation moves both together. `denoise`, `clahe`, brightness, contrast, blur, black squares
and both normalisations leave it alone.

- `annotated`: an image without a mask, or with one that can't be read or marks nothing, counts as unreadable (`data.unreadable` of the
  profile stops the site, or leaves it out). Any size of mask file will do that has the image's shape.
- `model`: the network sees each image as its own study prepares it, in its own size, whatever this study does to the pixels. The file comes
  with the study and is approved with it, as starting weights are; a changed file asks for approval again. The mask is computed on the
  site's device, by the hospital, and stays there. A full-size U-Net takes a processor core seconds an image, once.
- The hospital's own page draws the mask's edge on every image that it shows, and says that heat on a lesion is no finding where the network
  was told where the lesion is. `consilium-site check` and `review` say which mask a study uses.
"""


#: A private study, whole; a test reads it.
EXAMPLE = """schema: consilium/study/1
name: calcifications-private
title: Benign or malignant calcifications, with differential privacy by patient
governance:
  purpose: To see what a private federation reaches
  ethics: "Vote 123/26 of the ethics committee of Example University"
  retention: Models and reports for ten years, updates until the audit
seed: 7
task:
  classes: {benign: [BENIGN, BENIGN_WITHOUT_CALLBACK], malignant: [MALIGNANT]}
  positive_class: malignant
  unit: finding
preprocessing: {region: finding, size: 64, channels: 3}
model: {name: resnet18, norm: group}
training: {optimiser: sgd, learning_rate: 0.5, momentum: 0.9, loss: binary_cross_entropy}
federation: {rounds: 20, quorum: 2, weighting: uniform}
evaluation: {baseline: false, release: {epsilon: 1}}
privacy:
  sampling_rate: 32/350      # of some 350 train patients a step draws 32, on average
  steps_per_round: 11        # about one pass over them
  clipping_norm: 1.0
  normaliser: 32             # the expected number that are drawn: public, the same everywhere
  epsilon: 8                 # of the whole run; the noise is solved for
  delta: 1e-5
"""

_PRIVATE = f"""# A private study

With a `privacy` section every hospital trains by DP-SGD: in each step each patient is drawn with the chance `sampling_rate`, and one image
of each who was drawn gives a gradient, which is clipped to `clipping_norm`; Gaussian noise is added to the sum, which is divided by
`normaliser`. What leaves a hospital then says about any one patient, with all images, no more than epsilon and delta allow, whoever looks.
`consilium-server plan STUDY` says what it costs, and [coordinating.md](coordinating.md#private-studies) how to choose the numbers.

```yaml
{EXAMPLE}```

Everything that leaves is noised, and everything else stays: counts, losses, validation, times. So a private study may not ask for what one
patient would change about others where no noise covers it, and is refused, a sentence each:

| key | what it must be | because |
|---|---|---|
| `model.norm` | `group` | batch norm mixes the patients of a batch, and its running statistics would leave |
| `data.balanced` | left out | who is drawn depends on how many others there are |
| `data.scarce_classes` | `refuse` | with `leave_out` one patient decides about a whole class |
| `data.duplicates` | left out | an image takes part or not for the sake of another patient; counts of common images have no noise |
| `augmentation.validation` | `false` | nothing is validated in a private run |
| `data.split.division` | `by_patient` | each patient's part is a keyed hash of the id alone, so shares are met on average only |
| `training.class_weights` | `none` | balanced weights come from private class counts |
| `training.focal.alpha` | not `balanced` | the same counts; public weights by class name are in order |
| `training.precision` | not `bf16` | clipping and noise would be too coarse; `auto` becomes fp32 |
| `training.local_epochs`, `training.batch_size` | left out | `privacy.steps_per_round` and `privacy.sampling_rate` take their place |
| `federation.rounds` | at least 1 | without a round nothing is trained |
| `federation.weighting` | `uniform`, or public weights by site name | counts are private |
| `federation.keep_updates` | left out, or `true` | an auditor adds the updates up again |
| `evaluation.baseline` | `false` | figures of the starting model would be another release |
| `evaluation.release` | an epsilon | exact counts of test patients can't leave |
| `model.weights.origin` | `public` | weights that were trained on a federation's patients would be a release on no record |
| `preprocessing.mask.weights.origin` | `public` | the same; `from: annotated` is in order: a patient's masks change nobody else's images |

The numbers of the section are kept as they are written (`32/350`, `1e-5`), and are part of the digest that hospitals approve; so is a
noise multiplier that was solved for. `head` may be there: the SVM with the RBF kernel is then fitted at each hospital, and stays with its
figures in the hospital's own page. A plain study may have `evaluation.release` too: then the test counts leave with noise, and the updates
without.
"""


_SEGMENTATION = """# A segmentation study

With `task.kind: segmentation` the network answers with a mask of the lesion in place of a class. `preprocessing.mask` is then
`{from: annotated}`, `training.loss` is `cross_entropy_dice`, and `model.name` is `split_attention_unet`. The classes only select the
records, keep the split even and divide the figures. Every hospital reports means over its test images (IoU, Dice, IoU with images below
0.65 counted as 0, pixel accuracy, sensitivity and specificity), each with its interval, and a histogram of Dice. `head`,
`training.class_weights` and `privacy.svm` are refused. `configs/skinnet_segmentation_small.yaml` is an example; `consilium-server export`
writes the network into a file that other studies can name in `preprocessing.mask`.

With `privacy` (`configs/skinnet_segmentation_private_small.yaml`), or `evaluation.release` alone, the figures leave with noise. Each test
patient then has one vote, the IoU of one image, in one of 20 equal bins of [0, 1]; the 20 counts get noise of the release's whole epsilon.
From these counts everybody computes mean IoU, mean Dice and the IoU with images below 0.65 counted as 0 (0.65 is an edge of the bins).
Their intervals know of the noise, of which patients came, and of the width of the bins. Nothing else leaves: no figure by class, none of
pixels, no gain.
"""


def markdown() -> str:
    """The page."""
    study, profile = tables(Study, defaults=True), tables(Profile, defaults=True)
    return f"{_INTRODUCTION}\n{_SEGMENTATION}\n{_PRIVATE}\n# A study, key by key\n\n{study}\n# A site profile, key by key\n\n{profile}"


if __name__ == "__main__":
    print(markdown(), end="")
