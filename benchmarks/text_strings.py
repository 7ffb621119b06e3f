"""Strings in many scripts that are hard to tokenize, for refresh_text_references.py."""

# By writing system; names with a small letter are kinds of text that belong to none. What is invisible, or joins the
# character before it, is escaped; the rest stands as it looks.
# ruff: noqa: RUF001 (these letters are meant to be mistaken for others)
STRINGS = {
    "Latin": [
        "The quick brown fox jumps over the lazy dog.",
        "WÖRLD café naïve Ångström",
        "e\u0301clair e\u0323\u0301 a\u030a A\u030a",  # accents as characters of their own
        "o\u0308\u0304 s\u0323\u0307 s\u0307\u0323",  # the same two accents in both orders
        "Z\u0334a\u0337l\u0336g\u0338o\u0335 t\u0300\u0301\u0302\u0303\u0304\u0305ext",
        "Việt Nam: tiếng Việt đẹp",
        "Vie\u0302\u0323t Nam ti\u00ea\u0301ng",  # one accent inside the letter, the other beside it
        "Łódź, Kraków i Gdańsk",
        "Đorđe, Øystein, Þór, Æsir, œuvre",
        "İstanbul ISPARTA ıspanak I\u0307zmir",  # dotted and dotless i of Turkish
        "Straße STRASSE STRAẞE Maße",
        "ﬁnal ﬂow oﬃce eﬀect ﬆop ﬅ",  # ligatures stay, in BERT
        "ŉ ǅ ǆ Ǆ ĳ Ĳ ǈ",
        "ſtraſſe und Weiſe",
        "\u212aelvin \u212bngstrom",  # KELVIN SIGN and ANGSTROM SIGN are letters by another name
        "l'été qu'il aujourd'hui",
        "don't won't they've I'll she'd y'all O’Neill rock ’n’ roll",
        "co-operate re\u2011enter mother-in-law state–of–the–art",
        "jalapeño piñata mañana ¿Qué? ¡Olé!",
        "fjörður Þingvellir Reykjavík",
        "Příliš žluťoučký kůň úpěl ďábelské ódy",
        "Hawaiʻi ʻokina Tonga faka\u02bbuta",
        "ŋ ɓ ɗ Ɣ Ɛ Ɔ Ŋaa Hausa ƙofa",
        "ˈɪŋɡlɪʃ fəˈnɛtɪks ʃuː tʰɪn",
        "Ārija Ēriks Ģirts Šķēle",
        "Ḝ ḝ Ǻ ǻ Ṩ ṩ Ẍ",
        "ʰ ʲ ˢ ᵃ ᵇ ⁿ ₐ ₑ ᴬ ᴮ",
        "ɐʍʞ uʍop ǝpısdn",
        "Ⅻ ⅻ Ⅳ ⅳ MCMXCIV",
        "Ꝑ ꝑ Ꜳ ꜳ ƿynn ȝogh",
        "PNEUMONOULTRAMICROSCOPICSILICOVOLCANOCONIOSIS",
        "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch",
        "unaffable-ness_under__score __init__",
        "MixedCASE camelCase snake_case kebab-case SCREAMING_SNAKE",
    ],
    "Greek": [
        "Ελληνική Δημοκρατία",
        "ΣΑΣ ΟΔΥΣΣΕΥΣ Σίσυφος σοφός",  # a capital sigma becomes a plain small one also at the end of a word
        "ἐν ἀρχῇ ἦν ὁ λόγος",
        "ᾳ ᾼ ῳ ῼ ΐ ΰ",
        "α\u0301 Ω\u0345 ϐ ϑ ϕ ϖ ϗ",
        "λ=2π μΩ ΔS ≥ 0",
        "Ϲ ϲ Ϸ Ϻ Ͷ",
        "τι είναι; αυτό· ναι",
    ],
    "Cyrillic": [
        "Русский язык и литература",
        "Ёлка ёж Йод чай и\u0306 е\u0308",
        "Київ, Україна, їжак, ґанок",
        "Љубљана Њујорк Ћуприја Ђорђе",
        "Қазақ тілі әліпби",
        "Ѣ Ѳ Ѵ ѣ Ꙋ Слово\u0483",
        "Москва\u0301 замо\u0301к за\u0301мок",
        "ᲀᲁ Ԁ ԁ Ӑ ӑ",
        "№ 5 «цитата» — тире",
    ],
    "Armenian": [
        "Հայաստան Երևան",
        "Բարև ձեզ։ Ինչպե՞ս եք",
        "և եւ ﬓ ﬔ",  # ligatures
    ],
    "Georgian": [
        "საქართველო თბილისი",
        "ᲡᲐᲥᲐᲠᲗᲕᲔᲚᲝ",  # capitals, since Unicode 11
        "Ⴀⴀ ⴁ ⴂ",
    ],
    "Hebrew": [
        "עברית שלום עולם",
        "שָׁלוֹם בְּרֵאשִׁית",  # with points
        "\ufb2c \ufb1d \ufb2e ﭏ ש\u05bc\u05c1",  # letters with points, in one character and in three
        "צה״ל ג׳ירפה תל־אביב",
        "\u200fעברית\u200e English \u202bמימין\u202c",
    ],
    "Arabic": [
        "السلام عليكم",
        "بِسْمِ اللَّهِ الرَّحْمَٰنِ",  # with harakat
        "أإآؤئ ا\u0654 و\u0654",
        "ﷺ ﷲ ﻻ ﻼ ﷼",
        "ـــتطويلـــ",
        "می\u200cخواهم کتاب\u200cها",  # Persian with the zero-width non-joiner
        "پاکستان زندہ باد ۔ ٹ ڈ ڑ",
        "هل هذا صحيح؟ نعم، بالتأكيد؛",
        "\u2067عربي\u2069 \u061cمزيج abc",
        "١٢٣ ۴۵۶ ٪ ٫ ٬",
    ],
    "Syriac": ["ܫܠܡܐ ܥܠܡܐ", "ܐ\u0730ܒ\u0733 ܀"],
    "Thaana": ["ދިވެހި ރާއްޖެ"],
    "N'Ko": ["ߒߞߏ ߞߊ\u07f2ߞߊ߲"],
    "Devanagari": [
        "हिन्दी भाषा भारत",
        "क्षत्रिय ज्ञान श्री",
        "\u0958 \u0959 \u095e क\u093c ख\u093c ऩ",  # with the dot below, in one character and in two
        "संस्कृतम्। श्लोकः॥ ॐ",
        "१२३४ रुपये ₹५००",
        "क\u094d\u200dष क\u094d\u200cष",
    ],
    "Bengali": ["বাংলা ভাষা", "আমি ভালো আছি। ক\u09cb ক\u09c7\u09be", "\u09dc \u09dd \u09df য\u09bc", "৳১২৩ ৺"],
    "Gurmukhi": ["ਪੰਜਾਬੀ ਭਾਸ਼ਾ", "\u0a36 \u0a59 \u0a33 ਸ\u0a3c"],
    "Gujarati": ["ગુજરાતી ભાષા ૧૨૩"],
    "Odia": ["ଓଡ଼ିଆ ଭାଷା"],
    "Tamil": ["தமிழ் மொழி", "கொ கோ கௌ ௧௨௩", "ஸ்ரீ க்ஷ"],
    "Telugu": ["తెలుగు భాష"],
    "Kannada": ["ಕನ್ನಡ ಭಾಷೆ ಕೋ"],
    "Malayalam": ["മലയാളം ഭാഷ ൻ ർ"],
    "Sinhala": ["සිංහල භාෂාව ශ්\u200dරී"],
    "Thai": ["ภาษาไทยไม่มีช่องว่าง", "น้ำ กำ กํา", "ราคา ฿๑๒๓ ๏ ๚ ๛"],
    "Lao": ["ພາສາລາວ ນ້ຳ ໜ"],
    "Tibetan": ["བོད་སྐད་", "ༀ་མ་ཎི་པདྨེ་ཧཱུྃ།", "ཀྵ གྷ ༼ ༽"],
    "Myanmar": ["မြန်မာဘာသာ၊ ပါ။"],
    "Khmer": ["ភាសាខ្មែរ កម្ពុជា។", "៛ ៣៤ ឣ ក\u17b4"],
    "Mongolian": ["ᠮᠣᠩᠭᠣᠯ\u180eᠤᠨ ᠪᠢᠴᠢᠭ\u180b᠃"],
    "Javanese": ["ꦧꦱꦗꦮ꧈ ꧁ ꧂"],
    "Ethiopic": ["አማርኛ ሰላም።", "ትግርኛ፡ቋንቋ፣ ፩፪፫"],
    "Cherokee": ["ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ", "ꮳꮃꭹ Ᏸᏸ"],
    "Canadian syllabics": ["ᐃᓄᒃᑎᑐᑦ ᓄᓇᕗᑦ"],
    "Runic": ["ᚠᚢᚦᚨᚱᚲ᛫ᚷᚹ"],
    "Ogham": ["᚛ᚑᚌᚐᚋ\u1680ᚐ᚜"],
    "Tifinagh": ["ⵜⴰⵎⴰⵣⵉⵖⵜ"],
    "Coptic": ["Ⲙⲛⲧⲣⲙⲛⲕⲏⲙⲉ Ϣϣ"],
    "Glagolitic": ["Ⰳⰾⰰⰳⱁⰾⰻⱌⰰ"],
    "Gothic": ["𐌲𐌿𐍄𐌹𐍃𐌺"],
    "Deseret": ["𐐔𐐯𐑅𐐨𐑉𐐯𐐻"],  # has capitals, beyond the first 65,536 characters
    "Adlam": ["𞤀𞤣𞤤𞤢𞤥\U0001e944"],  # likewise, with an accent
    "Cuneiform": ["𒀀𒀁 𒑰"],
    "Braille": ["⠃⠗⠇⠑"],
    "Hangul": [
        "한국어 문장입니다",
        "\u1112\u1161\u11ab\u1100\u116e\u11a8",  # the same letters as parts of syllables
        "ㅋㅋㅋ ㅠㅠ ㅎㅎ",
        "ﾡﾢ ﾻﾼ",  # half width
        "값싼 닭 흙 뷁",
        "서울 2호선 '강남'역",
        "\u302e가 \u302f나 \u115f\u1160",
    ],
    "Hiragana": ["こんにちは世界", "が か\u3099 ぱ は\u309a ゔ", "ゝ ゞ ゟ っょ", "あ\u3099 あ゛ ー〜"],
    "Katakana": ["カタカナ テキスト", "ｶﾞｷﾞ ﾊﾟ ﾃｽﾄ", "ガ カ\u3099 ヷ ヿ", "ア・イ゠ウ ヽ ヾ", "㌔ ㍍ ㋐ ㇰ"],
    "Bopomofo": ["ㄅㄆㄇㄈ ㄧㄨㄩ ˊˇˋ˙"],
    "Han": [
        "中文字符处理",
        "日本語のテキストと漢字",
        "北京2008奥运会",
        "english混合中文mixed",
        "國语 臺灣 龍龜",
        "𠀀𠮷𡃁 吉野家𠮷",  # beyond the first 65,536 characters
        "x𪜀x𫝀x\U0002b820x\U0002b920x𬺰x𰀀x",  # extensions C to G; BERT lacks some of E, and F and G
        "\uf900\ufa0e\ufa70 \U0002f800",  # compatibility ideographs
        "⺩ ⼀ ⽥ 〇 〆 々",
        "你好，世界！「引用」《书》、。",
        "葛\U000e0100 葛\U000e0101 逢\ufe00",  # variation selectors
        "㈱ ㊙ ㋿ ㍿",
    ],
    "Yi": ["ꆈꌠꁱꂷ"],
    "emoji": [
        "😀 😃😄 ok",
        "👨\u200d👩\u200d👧\u200d👦 family",
        "👍🏻 👍🏽 👍🏿",  # skin tones
        "🇩🇪 🇯🇵 🇺🇳",  # flags are pairs of letters
        "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f Scotland",
        "❤\ufe0f ☎\ufe0e ☎\ufe0f ™\ufe0f",
        "1\ufe0f\u20e3 #\ufe0f\u20e3 *\ufe0f\u20e3",  # keycaps
        "great!!!😂😂😂so funny",
        ":-) ;-P <3 ^_^ ¯\\_(ツ)_/¯ (╯°□°)╯︵ ┻━┻",
        "👩🏾\u200d💻🧑\u200d🚀",
        "🅰🅱🆎🆑 ㊗ 🈚",
        "\U0001fae8 \U0001fadf shaking face, splatter",  # of Unicode 15 and 16
    ],
    "mathematics": [
        "𝐇𝐞𝐥𝐥𝐨 𝓦𝓸𝓻𝓵𝓭 𝔉𝔯𝔞𝔨 𝕕𝕠𝕦𝕓𝕝𝕖",
        "𝟘𝟙𝟚 𝟎 𝟿",
        "x²+y³=½ √2≈1.414 ∑∏∫ ∞",
        "∀x∈ℝ ∃y: x≠y ∧ ¬(x<y) ⊂ ∅",
        "E=mc² ±5% 10⁻³ H₂O CO₂",
        "a\u0338=b ≠ =\u0338 ≮ <\u0338",
        "ℓ ℵ ℏ ℜ № ℡ ™ ℠",
        "⅓ ⅔ ⅛ 1⁄2 ½ ¼",
        "→ ← ↔ ⇒ ⇔ ↦",
    ],
    "full width": ["ＦＵＬＬ ｗｉｄｔｈ １２３！？", "Ａ．Ｂ，Ｃ（Ｄ）～／：", "￥￡￠￦｡｢｣､"],
    "enclosed": ["①②③ ⑴ ⒈ ⓐ Ⓐ ❶ ㉑", "🄰🄱 🅐 🅰"],
    "controls": [
        "tab\tnew\nline\rreturn",
        "nul\x00byte",
        "\x01\x02bell\x07 esc\x1b[31mred\x1b[0m del\x7f",
        "vertical\x0btab form\x0cfeed",  # no spaces to BERT: they go
        "\x80\x85next\x9fline",
        "a\x1cb\x1dc\x1ed\x1fe",
        "\r\n\r\nwindows\r\nlines\r\n",
    ],
    "invisible": [
        "zero\u200bwidth\u200cnon\u200djoiner",
        "\u00adsoft\u00adhyphen un\u00adbe\u00adliev\u00adable",
        "\ufeffbyte order mark\ufeff inside",
        "word\u2060joiner \u2061\u2062\u2063",
        "\u202aleft\u202c \u202eoverride\u202c \u2066isolate\u2069",
        "\u034fgrapheme\u034fjoiner",
        "mongolian\u180evowel\u180bselector",
        "hangul\u3164filler\uffa0half",
        "\ufff9annotated\ufffatext\ufffb",
        "tag\U000e0001\U000e0041s",
        "\u200b\u200b",
        "\U0001d173beam\U0001d17a",
    ],
    "spaces": [
        "",
        " ",
        "   ",
        "\t\n\r ",
        "A\u00a0B\u3000C\u2028D\u2029E",
        "en\u2000em\u2001a\u2002b\u2003c\u2004d\u2005e\u2006f",
        "figure\u2007punct\u2008thin\u2009hair\u200anarrow\u202fmath\u205f.",
        "ogham\u1680space",
        "  leading and trailing  ",
        "many     spaces\t\tbetween",
        "\u3000\u00a0\u2003",
    ],
    "punctuation": [
        "«quoted» “curly” ‘single’ „low‟ ‹angle›",
        "wait... what?! no!!! really??",
        "a…b —c– d‒e―f",
        "§ ¶ † ‡ • ‣ ⁂ ※ ‼ ⁇",
        "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
        "^caret `tick |pipe ~tilde +plus =equals <less >more $dollar",
        "‿ ⁀ ﹏ ＿ ﹍",  # joining ones are punctuation too
        "【】〔〕〖〗『』〈〉",
        "՜ ՝ ՞ ־ ׀ ׃ ؛ ؟ ۔ । ॥ ෴ ๏ ༎ ၊ ჻",
        "፠ ። ፣ ᙮ ᛫ ᜵ ។ ៕ ᠀ ᠁ ᥄ ᨞ ᪠",
        "! ？ ﹗ ︕ ՜ ߹ ᥄",
        "\U00010100 \U0001039f \U00010857 \U0001091f",  # punctuation of scripts no longer written
        "¡¿·;·‧",
        "-" * 80,
        "." * 300,
        "!?" * 120,
        "=====>> *** ~~~ ### ___",
        "'",
        "''''''",
        "``LaTeX quotes''",
    ],
    "currency": ["$4.50 €3,99 £100 ¥500 ₹99 ₩1000 ₽5 ₿0.1", "¢ ¤ ฿ ៛ ₪ ₫ ₱ ₦ ₡ ₴ ₸ ₺ ₼ ₾", "\u20c0 ﷼ ﹩ ＄ ￠"],
    "symbols": [
        "© ® ™ ° µ ª º ¦ ¬",
        "☀☁☂ ♠♥♦♣ ♪♫ ♭♯ ✓✗",
        "█▓▒░ ╔═╗ ■□▲△",
        "\U0001d11e \U0001d122 𝄞clef",
        "´ ` ¨ ¯ ¸ ˆ ˜ ˘",
    ],
    "code": [
        "http://example.org/a/b?c=d&e=%20#frag",
        "user.name+tag@example.co.uk",
        "#hashtag #MachineLearning2024 @mention",
        "C:\\Users\\name\\file.txt /usr/local/bin",
        "def f(x): return x**2  # comment",
        "for(int i=0;i<10;i++){a[i]+=1;}",
        '<a href="x">link</a> &amp; &#39; &nbsp;',
        '{"key": [1, 2.5e-3, null], "b": true}',
        "SELECT * FROM t WHERE a != 'b';",
        "$ git commit -m 'msg' --no-verify && rm -rf ./x",
        "192.168.0.1:8080 ::1 fe80::1%eth0",
        "0xDEADBEEF 0b1010 1_000_000 3.14e+10 NaN -inf",
        "d41d8cd98f00b204e9800998ecf8427e",
        "f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
        "aGVsbG8gd29ybGQ=",
        "C++ C# F# .NET node.js i18n l10n k8s",
        "\\u0041 \\n %s %(name)d {0} ${VAR}",
        "C3H8O3 NaCl Fe2+ 13C",
    ],
    "numbers": [
        "1,234,567.89 -40 +7 1e9 3rd 21st 1990s '90s",
        "2024-02-29T23:59:60Z 12:30pm 5'11\"",
        "00000000 007 123456789012345678901234567890",
        "٠١٢ ۰۱۲ ०१२ ০১২ ๐๑๒ ໐໑ ༠༡ ០១ ߀߁",  # digits of other scripts
        "一二三 壹貳參 〇 十百千万",
        "1\u00a0000 1\u202f000 1'000 1_000",
        "50% 50‰ 1/2 3×4 6÷2",
    ],
    "long words": [
        "a" * 99,
        "a" * 100,
        "a" * 101,
        "b" * 200,
        "supercalifragilisticexpialidocious" * 3,
        "é" * 100,
        "e\u0301" * 100,  # 200 characters that become 100
        "\u00ad" * 50 + "x" * 100,
        "ß" * 101,
        "字" * 120,
        "한" * 34,  # 34 characters that become 102
        "한" * 33,
        "before " + "x" * 101 + " after",
        "x" * 60 + "-" + "y" * 60,
        "don" + "'t" * 60,
    ],
    "special tokens": [
        "[CLS] not a token [SEP]",
        "a [MASK] in a text",
        "[UNK][PAD]",
        "[unused0] [unused1]",
        "##ing ## #",
        "[cls] [mask",
    ],
    "outside": [
        "\ufffd replaced \ufffd",
        "private \ue000use\uf8ff \U000f0000 \U0010fffd",
        "unassigned\u0378x \u05ff \U0001fbfc \U0003ffff0",
        "noncharacters \ufdd0x \ufffey \uffffz \U0001fffe \U0010ffff",
        "in\U0002a6e0block of Chinese\ufadax",  # unassigned, but within or beside blocks of Chinese characters
        "newest capitals \U00010d50 \u1c89 \ua7cb",  # of Unicode 16
        "newest ideographs \U0002b739 \U00031350 \U0002ebf0",  # of Unicode 15
    ],
    "mixed": [
        "русский English 中文 العربية हिन्दी",
        "pаypаl.com",  # with Cyrillic letters
        "Ｈello wοrld",  # with a full-width and a Greek letter
        "Tokyo(東京)とSeoul(서울)",
        "x\u0301y\u0302z\u0303 \u0301 \u0301\u0302",
        "It’s 20°C—not 68°F—in Zürich…",
        "İi Iı ŞŞ ĞĞ",
        "a\u0300b\u200dc\u00add\ufeffe",
        "the the the the the",
        "x",
        "Привет, how are you? 很好!",
    ],
    # Characters whose kind changed after Unicode 8, of which the reference has its tables; the test lists them.
    "later than the reference": [
        "x\u08e2y",  # a format character since Unicode 9
        "x\u1885y",  # a letter then, an accent since Unicode 9
        "x\u0afay",  # an accent of Unicode 10
        "x\u2e4fy",  # punctuation of Unicode 12
        "x\u166dy",  # punctuation then, a symbol since Unicode 12
        "x\u1734y",  # an accent then, a spacing mark since Unicode 14
    ],
}
