"""The models as data: paper, size, cost and options of each. Loads neither Keras nor TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

Published = tuple[str, str] | None  # a figure with its digits, and where it stands
Options = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before it is built, for its default variant, input and number of classes.

    Args:
        name: its name in the registry.
        constructor: its constructor in `keras_resnets`.
        module: the family's file.
        paper: where it was published.
        parameters: trainable parameters.
        multiply_adds: of convolutions, dense layers and attention, for one image; papers call these FLOPs.
        input_shape: default (height, width, channels).
        classes: default number of classes.
        published: the parameter count that was published (with its digits), and where; None if none was.
        published_multiply_adds: the same for multiply-adds.
        options: the constructor's own options: name, and what there is to choose.
    """

    name: str
    constructor: str
    module: str
    paper: str
    parameters: int
    multiply_adds: int
    input_shape: tuple[int, int, int]
    classes: int
    published: Published
    published_multiply_adds: Published
    options: Options

    @property
    def flops(self) -> int:
        """Floating-point operations for one image: two a multiply-add."""
        return 2 * self.multiply_adds


@dataclass(frozen=True)
class _Family:
    """What the models of a paper share."""

    module: str
    paper: str
    options: Options
    imagenet: bool = True

    def __call__(
        self,
        constructor: str,
        parameters: int,
        multiply_adds: int,
        published: Published = None,
        published_multiply_adds: Published = None,
    ) -> ModelInfo:
        return ModelInfo(
            name=constructor.lower(),
            constructor=constructor,
            module=f"keras_resnets.models.{self.module}",
            paper=self.paper,
            parameters=parameters,
            multiply_adds=multiply_adds,
            input_shape=(224, 224, 3) if self.imagenet else (32, 32, 3),
            classes=1000 if self.imagenet else 10,
            published=published,
            published_multiply_adds=published_multiply_adds,
            options=self.options,
        )


_VARIANTS_2015 = (
    "variant",
    '"v1.5" (stride on the 3×3, as torchvision and timm), "paper" (on the first 1×1), '
    '"keras" (keras.applications: as the paper, with biased convolutions); default: that of the weights, else "v1.5"',
)
_VARIANTS_2016 = (
    "variant",
    "\"paper\" (stride in a stage's first block, as the authors' code and timm), "
    '"keras" (keras.applications: in its last block, with biases); default: that of the weights, else "paper"',
)
_VARIANTS_DENSE = (
    "variant",
    '"paper" (as torchvision and timm) or "keras" (keras.applications\' batch-norm constants); '
    'default: that of the weights, else "paper"',
)
_SHORTCUT = 'of He et al. 2015, where shapes differ: "A" zeros in the new channels, "B" a projection; "C" projections'
_SHORTCUT_A = ("shortcut", f'{_SHORTCUT} everywhere; default "A"')
_SHORTCUT_B = ("shortcut", f'{_SHORTCUT} everywhere; default "B"')
_NO_SHORTCUT = ("shortcut", "None: a plain network has none to choose")
_DROP_PATH = (
    "drop_path_rate",
    "stochastic depth (Huang et al. 2016): how often training skips the last block, growing linearly up to it",
)
_DROPOUT_TOP = ("dropout_rate", "dropout in front of the classifier")
_DROPOUT_BLOCK = ("dropout_rate", "dropout between the convolutions of a block (the paper: 0.3)")
_DROPOUT_DENSE = ("dropout_rate", "dropout behind each 3×3 convolution (the paper: 0.2 without augmentation)")
_DROPOUT_VGG = ("dropout_rate", "dropout behind each hidden dense layer; default 0.5, the paper's")
_DROPOUT_VIT = ("dropout_rate", "dropout behind embeddings, attention and dense layers")

_RESIDUAL_A = (_VARIANTS_2015, _SHORTCUT_A, _DROP_PATH, _DROPOUT_TOP)
_RESIDUAL_B = (_VARIANTS_2015, _SHORTCUT_B, _DROP_PATH, _DROPOUT_TOP)
_PLAIN = (_VARIANTS_2015, _NO_SHORTCUT, _DROPOUT_TOP)
_PRE_ACTIVATION = (_VARIANTS_2016, _SHORTCUT_B, _DROP_PATH)

_vgg = _Family("vgg", "Simonyan & Zisserman 2014, arXiv:1409.1556, Table 1", (_DROPOUT_VGG,))
_vgg_bn = _Family("vgg", "Simonyan & Zisserman 2014, arXiv:1409.1556, Table 1, with batch norm", (_DROPOUT_VGG,))
_resnet = _Family("resnet", "He et al. 2015, arXiv:1512.03385, Table 1", _RESIDUAL_B)
_plain = _Family("resnet", "He et al. 2015, arXiv:1512.03385, Table 1, without shortcuts", _PLAIN)
_cifar = _Family("resnet", "He et al. 2015, arXiv:1512.03385, Section 4.2", _RESIDUAL_A, imagenet=False)
_cifar_plain = _Family(
    "resnet", "He et al. 2015, arXiv:1512.03385, Section 4.2, without shortcuts", _PLAIN, imagenet=False
)
_v2 = _Family("resnet_v2", "He et al. 2016, arXiv:1603.05027, Section 5", _PRE_ACTIVATION)
_cifar_v2 = _Family("resnet_v2", "He et al. 2016, arXiv:1603.05027, Table 4", _PRE_ACTIVATION, imagenet=False)
_resnext = _Family("resnext", "Xie et al. 2017, arXiv:1611.05431, Table 1", _RESIDUAL_B)
_wide = _Family("wide_resnet", "Zagoruyko & Komodakis 2016, arXiv:1605.07146, ImageNet", _RESIDUAL_B)
_cifar_wide = _Family(
    "wide_resnet",
    "Zagoruyko & Komodakis 2016, arXiv:1605.07146, Table 1",
    (_DROP_PATH, _DROPOUT_BLOCK),
    imagenet=False,
)
_se = _Family("se_resnet", "Hu et al. 2018, arXiv:1709.01507, Table 1", _RESIDUAL_B)
_bag = _Family("resnet_d", "He et al. 2018, arXiv:1812.01187, Figure 2", _RESIDUAL_B)
_rs = _Family("resnet_rs", "Bello et al. 2021, arXiv:2103.07579", _RESIDUAL_B)
_dense = _Family("densenet", "Huang et al. 2017, arXiv:1608.06993, Table 1", (_VARIANTS_DENSE, _DROPOUT_DENSE))
_cifar_dense = _Family(
    "densenet", "Huang et al. 2017, arXiv:1608.06993, Table 2", (_VARIANTS_DENSE, _DROPOUT_DENSE), imagenet=False
)
_vit = _Family("vit", "Dosovitskiy et al. 2020, arXiv:2010.11929, Table 1", (_DROP_PATH, _DROPOUT_VIT))
_deit = _Family("vit", "Touvron et al. 2021 (DeiT), arXiv:2012.12877, Table 1", (_DROP_PATH, _DROPOUT_VIT))

_HE2015 = "He et al. 2015, Table 6"
_HE2015_1 = "He et al. 2015, Table 1"
_HE2016 = "He et al. 2016, Table 4"
_WRN = "Zagoruyko & Komodakis 2016, Table 4"
_DENSE = "Huang et al. 2017, Table 2"
_TORCHVISION = "torchvision 0.28"
_TIMM = "timm 1.0.31"

MODELS = (
    _vgg("VGG11", 132_863_336, 7_609_090_048, ("132,863,336", _TORCHVISION), ("7.609 G", _TORCHVISION)),
    _vgg("VGG13", 133_047_848, 11_308_466_176, ("133,047,848", _TORCHVISION), ("11.308 G", _TORCHVISION)),
    _vgg("VGG16", 138_357_544, 15_470_264_320, ("138,357,544", _TORCHVISION), ("15.47 G", _TORCHVISION)),
    _vgg("VGG19", 143_667_240, 19_632_062_464, ("143,667,240", _TORCHVISION), ("19.632 G", _TORCHVISION)),
    _vgg_bn("VGG11_BN", 132_868_840, 7_609_090_048, ("132,868,840", _TORCHVISION), ("7.609 G", _TORCHVISION)),
    _vgg_bn("VGG13_BN", 133_053_736, 11_308_466_176, ("133,053,736", _TORCHVISION), ("11.308 G", _TORCHVISION)),
    _vgg_bn("VGG16_BN", 138_365_992, 15_470_264_320, ("138,365,992", _TORCHVISION), ("15.47 G", _TORCHVISION)),
    _vgg_bn("VGG19_BN", 143_678_248, 19_632_062_464, ("143,678,248", _TORCHVISION), ("19.632 G", _TORCHVISION)),
    _resnet("ResNet18", 11_689_512, 1_814_073_344, ("11,689,512", _TORCHVISION), ("1.814 G", _TORCHVISION)),
    _resnet("ResNet34", 21_797_672, 3_663_761_408, ("21,797,672", _TORCHVISION), ("3.664 G", _TORCHVISION)),
    _resnet("ResNet50", 25_557_032, 4_089_184_256, ("25,557,032", _TORCHVISION), ("4.089 G", _TORCHVISION)),
    _resnet("ResNet101", 44_549_160, 7_801_405_440, ("44,549,160", _TORCHVISION), ("7.801 G", _TORCHVISION)),
    _resnet("ResNet152", 60_192_808, 11_513_626_624, ("60,192,808", _TORCHVISION), ("11.514 G", _TORCHVISION)),
    _plain("PlainNet18", 11_515_688, 1_794_805_760, None, ("1.8 G", _HE2015_1)),
    _plain("PlainNet34", 21_623_848, 3_644_493_824, None, ("3.6 G", _HE2015_1)),
    _plain("PlainNet50", 22_780_456, 3_729_522_688),
    _plain("PlainNet101", 41_772_584, 7_441_743_872),
    _plain("PlainNet152", 57_416_232, 11_153_965_056),
    _cifar("ResNet20", 269_722, 40_551_040, ("0.27M", _HE2015)),
    _cifar("ResNet32", 464_154, 68_862_592, ("0.46M", _HE2015)),
    _cifar("ResNet44", 658_586, 97_174_144, ("0.66M", _HE2015)),
    _cifar("ResNet56", 853_018, 125_485_696, ("0.85M", _HE2015)),
    _cifar("ResNet110", 1_727_962, 252_887_680, ("1.7M", _HE2015)),
    _cifar("ResNet1202", 19_421_274, 2_829_238_912, ("19.4M", _HE2015)),
    _cifar_plain("PlainNet20", 269_722, 40_551_040),
    _cifar_plain("PlainNet32", 464_154, 68_862_592),
    _cifar_plain("PlainNet44", 658_586, 97_174_144),
    _cifar_plain("PlainNet56", 853_018, 125_485_696),
    _cifar_plain("PlainNet110", 1_727_962, 252_887_680),
    _v2("ResNet18V2", 11_687_720, 1_814_073_344, ("11,687,720", _TIMM), ("1,814,073,344", f"{_TIMM}, counted")),
    _v2("ResNet34V2", 21_795_880, 3_663_761_408, ("21,795,880", _TIMM), ("3,663,761,408", f"{_TIMM}, counted")),
    _v2("ResNet50V2", 25_549_352, 4_089_184_256, ("25,549,352", _TIMM), ("4,089,184,256", f"{_TIMM}, counted")),
    _v2("ResNet101V2", 44_541_480, 7_801_405_440, ("44,541,480", _TIMM), ("7,801,405,440", f"{_TIMM}, counted")),
    _v2("ResNet152V2", 60_185_128, 11_513_626_624, ("60,185,128", _TIMM), ("11,513,626,624", f"{_TIMM}, counted")),
    _v2("ResNet200V2", 64_666_152, 15_007_481_856),
    _cifar_v2("ResNet20V2", 272_282, 40_813_184),
    _cifar_v2("ResNet56V2", 855_578, 125_747_840),
    _cifar_v2("ResNet110V2", 1_730_522, 253_149_824, ("1.7M", _HE2016)),
    _cifar_v2("ResNet164V2", 1_703_258, 247_646_720, ("1.7M", _HE2016)),
    _cifar_v2("ResNet1001V2", 10_327_706, 1_490_995_712, ("10.2M", f"{_HE2016}, without batch norm")),
    _cifar_wide("WRN16_4", 2_748_890, 392_612_352),
    _cifar_wide("WRN16_8", 10_961_370, 1_548_145_664, ("11.0M", _WRN)),
    _cifar_wide("WRN28_10", 36_479_194, 5_243_328_768, ("36.5M", _WRN)),
    _cifar_wide("WRN40_4", 8_949_210, 1_298_582_016, ("8.9M", _WRN)),
    _wide("WideResNet50_2", 68_883_240, 11_398_021_120, ("68,883,240", _TORCHVISION), ("11.398 G", _TORCHVISION)),
    _wide("WideResNet101_2", 126_886_696, 22_753_050_624, ("126,886,696", _TORCHVISION), ("22.753 G", _TORCHVISION)),
    _resnext("ResNeXt50_32x4d", 25_028_904, 4_230_479_872, ("25,028,904", _TORCHVISION), ("4.23 G", _TORCHVISION)),
    _resnext("ResNeXt101_32x8d", 88_791_336, 16_414_015_488, ("88,791,336", _TORCHVISION), ("16.414 G", _TORCHVISION)),
    _dense("DenseNet121", 7_978_856, 2_834_161_664, ("7,978,856", _TORCHVISION), ("2.834 G", _TORCHVISION)),
    _dense("DenseNet169", 14_149_480, 3_359_843_328, ("14,149,480", _TORCHVISION), ("3.36 G", _TORCHVISION)),
    _dense("DenseNet201", 20_013_928, 4_291_365_888, ("20,013,928", _TORCHVISION), ("4.291 G", _TORCHVISION)),
    _dense(
        "DenseNet264",
        33_337_704,
        5_751_653_376,
        ("33,337,704", f"{_TORCHVISION}, DenseNet(32, (6, 12, 64, 48))"),
        ("5,751,653,376", f"{_TORCHVISION}, counted"),
    ),
    _cifar_dense("DenseNetBC40_12", 176_122, 72_365_352),
    _cifar_dense("DenseNetBC100_12", 769_162, 287_929_692, ("0.8M", _DENSE)),
    _cifar_dense("DenseNetBC250_24", 15_324_406, 5_418_785_724, ("15.3M", _DENSE)),
    _cifar_dense("DenseNetBC190_40", 25_624_430, 9_301_945_740, ("25.6M", _DENSE)),
    _se("SEResNet18", 11_779_624, 1_814_161_408, ("11,779,624", _TIMM), ("1,814,161,408", f"{_TIMM}, counted")),
    _se("SEResNet34", 21_960_416, 3_663_920_128, ("21,960,416", _TIMM), ("3,663,920,128", f"{_TIMM}, counted")),
    _se("SEResNet50", 28_088_024, 4_091_699_200, ("28,088,024", _TIMM), ("4,091,699,200", f"{_TIMM}, counted")),
    _se("SEResNet101", 49_326_872, 7_806_148_608, ("49,326,872", _TIMM), ("7,806,148,608", f"{_TIMM}, counted")),
    _se("SEResNet152", 66_821_848, 11_520_204_800, ("66,821,848", _TIMM), ("11,520,204,800", f"{_TIMM}, counted")),
    _bag("ResNet50C", 25_576_264, 4_328_824_832, ("25,576,264", _TIMM), ("4,328,824,832", f"{_TIMM}, counted")),
    _bag("ResNet18D", 11_708_744, 2_053_713_920, ("11,708,744", _TIMM), ("2,053,713,920", f"{_TIMM}, counted")),
    _bag("ResNet34D", 21_816_904, 3_903_401_984, ("21,816,904", _TIMM), ("3,903,401,984", f"{_TIMM}, counted")),
    _bag("ResNet50D", 25_576_264, 4_328_824_832, ("25,576,264", _TIMM), ("4,328,824,832", f"{_TIMM}, counted")),
    _bag("ResNet101D", 44_568_392, 8_041_046_016, ("44,568,392", _TIMM), ("8,041,046,016", f"{_TIMM}, counted")),
    _bag("ResNet152D", 60_212_040, 11_753_267_200, ("60,212,040", _TIMM), ("11,753,267,200", f"{_TIMM}, counted")),
    _rs("ResNetRS50", 35_691_912, 4_454_490_112, ("35,691,912", _TIMM), ("4,454,490,112", f"{_TIMM}, counted")),
    _rs("ResNetRS101", 63_618_696, 8_175_624_192, ("63,618,696", _TIMM), ("8,175,624,192", f"{_TIMM}, counted")),
    _rs("ResNetRS152", 86_621_576, 11_895_185_408, ("86,621,576", _TIMM), ("11,895,185,408", f"{_TIMM}, counted")),
    _rs("ResNetRS200", 93_209_992, 15_391_137_792, ("93,209,992", _TIMM), ("15,391,137,792", f"{_TIMM}, counted")),
    _deit("ViT_Ti16", 5_717_416, 1_253_683_200, ("5,717,416", _TIMM), ("1,253,683,200", f"{_TIMM}, counted")),
    _deit("ViT_S16", 22_050_664, 4_598_882_304, ("22,050,664", _TIMM), ("4,598,882,304", f"{_TIMM}, counted")),
    _vit("ViT_B16", 86_567_656, 17_563_828_224, ("86,567,656", _TIMM), ("17.564 G", _TORCHVISION)),
)
