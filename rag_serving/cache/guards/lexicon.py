"""The word lists of the guards: units, months, negations, opposites, and words that carry little.

Data alone. English first; German, French, Spanish, Portuguese, Norwegian and Japanese as far as a word there means
nothing else in English. Everything is case-folded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

Groups = tuple[tuple[tuple[str, ...], ...], ...]
"""Groups of sides, of words and phrases each."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _groups(text: str) -> Groups:
    """Groups between blank lines, one side a line, phrases between bars; a line that is indented goes on."""
    sides = text.strip().replace("\n    ", " ").split("\n\n")
    return tuple(tuple(tuple(p.strip() for p in side.split("|")) for side in group.split("\n")) for group in sides)


NUMBER_WORDS: Final[Mapping[str, int]] = {
    word: value
    for value, words in {
        0: "zero null",
        2: "two zwei deux dos dois duas",
        3: "three drei trois tres três tre",
        4: "four vier quatre cuatro quatro fire",
        5: "five fünf cinq cinco fem",
        6: "six sechs seis seks",
        7: "seven sieben siete sete syv",
        8: "eight acht huit ocho oito åtte",
        9: "nine neun neuf nueve nove ni",
        10: "ten zehn dix diez dez ti",
        11: "eleven onze elleve",
        12: "twelve zwölf douze doce doze tolv",
        13: "thirteen dreizehn treize trece treze tretten",
        14: "fourteen vierzehn quatorze catorce fjorten",
        15: "fifteen fünfzehn quinze quince femten",
        16: "sixteen sechzehn dieciséis dezesseis seksten",
        17: "seventeen",
        18: "eighteen",
        19: "nineteen",
        20: "twenty zwanzig vingt veinte vinte tjue",
        30: "thirty dreißig dreissig trente treinta trinta tretti",
        40: "forty vierzig quarante cuarenta quarenta førti",
        50: "fifty fünfzig cinquante cincuenta cinquenta femti",
        60: "sixty sechzig soixante sesenta sessenta seksti",
        70: "seventy siebzig setenta sytti",
        80: "eighty achtzig ochenta oitenta åtti",
        90: "ninety neunzig noventa nitti",
    }.items()
    for word in words.split()
    # Norwegian "fire", "ni" and "ti" and Spanish "once" are other words in English.
    if word not in {"fire", "ni", "ti", "null"}
}
"""Words for numbers. Not "one", which is more often a pronoun: it counts before a unit only."""

SCALES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("hundred", "hundert", "cent", "cien", "hundre"), 100),
    **dict.fromkeys(("k", "thousand", "tausend", "mille", "mil", "tusen", "千"), 10**3),
    **dict.fromkeys(("万",), 10**4),
    **dict.fromkeys(
        ("million", "millions", "millionen", "millón", "millones", "milhão", "milhões", "millioner"), 10**6
    ),
    **dict.fromkeys(("億",), 10**8),
    **dict.fromkeys(("bn", "billion", "billions", "milliarden", "milliard", "milliards", "milliarder"), 10**9),
    **dict.fromkeys(("trillion", "trillions"), 10**12),
}

ORDINALS: Final[Mapping[str, int]] = {
    word: value
    for value, words in {
        1: "first erste ersten erster premier première primero primera primeiro primeira første",
        2: "second zweite zweiten deuxième segundo segunda andre",
        3: "third dritte dritten troisième tercero tercera terceiro tredje",
        4: "fourth vierte vierten quatrième cuarto quarto fjerde",
        5: "fifth fünfte fünften cinquième quinto femte",
        6: "sixth",
        7: "seventh",
        8: "eighth",
        9: "ninth",
        10: "tenth",
        11: "eleventh",
        12: "twelfth",
    }.items()
    for word in words.split()
}

UNITS: Final[Mapping[str, str]] = {
    word: unit
    for unit, words in {
        "%": "% percent percents pct percentage prozent procent prosent パーセント",
        "ms": "ms millisecond milliseconds",
        "s": "s sec secs second seconds sekunde sekunden seconde secondes segundo segundos sekund sekunder 秒",
        "min": "min mins minute minutes minuten minuto minutos minutt minutter 分",
        "h": "h hr hrs hour hours hourly stunde stunden heure heures hora horas timer 時間",
        "d": "d day days daily tag tage tagen jour jours día días dia dias dag dager 日間",
        "week": "week weeks weekly wk wks woche wochen semaine semaines semana semanas uke uker 週間",
        "month": "month months monthly mo monat monate monaten mois mes meses mês måned måneder ヶ月 か月 カ月",
        "quarter": "quarter quarters quarterly quartal quartale trimestre trimestres kvartal",
        "year": "year years yearly yr yrs yo annual annually jahr jahre jahren année années año años ano anos år 年間",
        "mm": "mm millimeter millimeters millimetre millimetres",
        "cm": "cm centimeter centimeters centimetre centimetres",
        "m": "m meter meters metre metres mètre mètres metro metros",
        "km": "km kms kilometer kilometers kilometre kilometres kilomètres kilómetros quilômetros キロメートル",
        "in": "inch inches",
        "ft": "ft foot feet",
        "mi": "mi mile miles meilen millas milhas",
        "mg": "mg milligram milligrams",
        "g": "g gram grams gramme grammes",
        "kg": "kg kgs kilo kilos kilogram kilograms",
        "lb": "lb lbs pound pounds",
        "oz": "oz ounce ounces",
        "t": "tonne tonnes ton tons",
        "ml": "ml milliliter milliliters millilitre millilitres",
        "l": "l liter liters litre litres",
        "gal": "gallon gallons",
        "°c": "°c celsius",
        "°f": "°f fahrenheit",
        "kb": "kb kib kilobyte kilobytes",
        "mb": "mb mib megabyte megabytes",
        "gb": "gb gib gigabyte gigabytes",
        "tb": "tb tib terabyte terabytes",
        "kw": "kw kilowatt kilowatts",
        "kwh": "kwh",
        "v": "volt volts",
        "usd": "$ usd us$ dollar dollars",
        "eur": "€ eur euro euros",
        "gbp": "£ gbp quid sterling",
        "jpy": "¥ jpy yen 円",
        "nok": "nok kr kroner krone",
        "sek": "sek",
        "dkk": "dkk",
        "chf": "chf francs",
        "inr": "₹ inr rupee rupees",
    }.items()
    for word in words.split()
}
"""How units are written, before or after a number, to what they are."""

CURRENCIES: Final = frozenset(["usd", "eur", "gbp", "jpy", "nok", "sek", "dkk", "chf", "inr"])
"""Units that may stand before their number."""

MONTHS: Final[Mapping[str, int]] = {
    word: number
    for number, words in {
        1: "january jan januar janvier enero janeiro",
        2: "february feb februar février febrero fevereiro",
        3: "march mar märz mars marzo março",
        4: "april apr avril abril",
        5: "may mai mayo maio",
        6: "june jun juni juin junio junho",
        7: "july jul juli juillet julio julho",
        8: "august aug août agosto",
        9: "september sep sept septembre septiembre setembro",
        10: "october oct oktober octobre octubre outubro",
        11: "november nov novembre noviembre novembro",
        12: "december dec dezember décembre diciembre dezembro desember",
    }.items()
    for word in words.split()
}
AMBIGUOUS_MONTHS: Final = _words("may march mar mars mai jan jun jul sep sept dec nov oct mayo")
"""Also verbs, names or planets: months beside a number, or after a word such as "in" or "last"."""
BEFORE_MONTHS: Final = _words(
    "in of by since until till before after during from last next this early late mid every each im ab bis seit "
    "vor nach en de depuis avant après desde hasta antes em até i fra før etter"
)

WEEKDAYS: Final[Mapping[str, int]] = {
    word: number
    for number, words in {
        1: "monday mondays montag lundi lunes segunda-feira mandag 月曜日 月曜",
        2: "tuesday tuesdays dienstag mardi martes terça-feira tirsdag 火曜日 火曜",
        3: "wednesday wednesdays mittwoch mercredi miércoles quarta-feira onsdag 水曜日 水曜",
        4: "thursday thursdays donnerstag jeudi jueves quinta-feira torsdag 木曜日 木曜",
        5: "friday fridays freitag vendredi viernes sexta-feira fredag 金曜日 金曜",
        6: "saturday saturdays samstag samedi sábado lørdag 土曜日 土曜",
        7: "sunday sundays sonntag dimanche domingo søndag 日曜日 日曜",
        8: "weekend weekends wochenende helg helgen 週末",
        9: "weekday weekdays werktag werktags 平日",
    }.items()
    for word in words.split()
}

NEGATIONS: Final = _words(
    "no not never none nobody nothing nowhere neither nor without cannot except excepting unless excluding "
    "exclude outside excludes excluded hardly lacking lack lacks kein keine keinen keinem keiner keines nicht nie "
    "niemals nirgends ohne außer ausser weder pas jamais sans aucun aucune sauf rien personne nunca sin ningún "
    "ninguna ninguno nada nadie excepto salvo tampoco não sem nenhum nenhuma ninguém exceto ikke aldri uten ingen "
    "intet unntatt verken non"
)
"""Counted, so that a double negation is not a single one."""
CONTRACTED_NEGATIONS: Final = _words(
    "dont doesnt didnt cant couldnt wont wouldnt shouldnt isnt arent wasnt werent hasnt havent hadnt mustnt aint"
)
"""As they are typed in haste, without their apostrophe."""
NEGATING_PHRASES: Final = "|".join(
    (
        r"(?:refus|fail|avoid|declin|forget|forgot)\w* to\b",
        r"(?<!at )\bleast\b",
        r"\b(?:out of|no longer|instead of|rather than)\b",
    )
)
"""Counted likewise; "no longer" twice, with its "no", in both questions or in none."""
JAPANESE_NEGATIONS: Final = ("ません", "なかった", "なければ", "ない", "なく", "以外", "除く", "除き")

COMPARISONS: Final = _groups(
    """
before | prior to | until | till | earlier than | no later than | vor | avant | antes | før | 以前 | 前に
after | since | later than | nach | après | después | depois | etter | 以降 | 後に
during | while | während | pendant | durante | under løpet av

at least | minimum | min | minimal | no fewer than | no less than | mindestens | au moins | al menos |
    pelo menos | minst | minste | 最低 | 最小 | 最少 | 以上
at most | maximum | max | maximal | no more than | up to | höchstens | maximale | au plus | como máximo |
    no máximo | maks | maksimum | maksimal | høyst | 最大 | 最高 | 最多 | 以下

more than | above | over | exceeds | exceeding | greater than | mehr als | über | plus de | más de | mais de |
    mer enn
less than | below | under | fewer than | weniger als | unter | moins de | menos de | mindre enn | færre enn

more | most | mehr | meisten
less | least | fewest | fewer | weniger | wenigsten

increase | increases | increased | increasing | raise | raised | rise | rises | rising | rose | grow | grows |
    growth | grew | erhöhen | augmenter | aumentar | øke | 増やす
decrease | decreases | decreased | decreasing | reduce | reduces | reduced | reducing | lower | lowers |
    lowering | fall | falls | fell | drop | drops | decline | declines | declined | shrink | senken | réduire |
    reducir | reduzir | redusere | 減らす

high | higher | highest | hohe | hohen | hoch | höchste | élevé | alto | høy | høyeste
low | lower | lowest | niedrig | niedrige | niedrigste | bas | bajo | baixo | lav | laveste

big | bigger | biggest | large | larger | largest | great | greater | greatest | größte | größer | grand | mayor
    | maior | største
small | smaller | smallest | little | lesser | tiny | kleinste | kleiner | petit | menor | minste

long | longer | longest
short | shorter | shortest

fast | faster | fastest | quick | quicker | quickest | quickly
slow | slower | slowest | slowly

early | earlier | earliest
late | later | latest

old | older | oldest
young | younger | youngest | new | newer | newest

first | erste | ersten | premier | première | primero | primera | primeiro | primeira | første | 最初
last | final | letzte | letzten | dernier | dernière | último | última | siste | 最後

best | better
worst | worse

advantage | advantages | benefit | benefits | pro | pros | upside
disadvantage | disadvantages | drawback | drawbacks | con | cons | downside | risk | risks

cheap | cheaper | cheapest
expensive | dearer | dearest | costliest

hyper | hyperthyroidism | hypertension | hyperglycemia | hyperkalemia | hypernatremia | hypercalcemia
hypo | hypothyroidism | hypotension | hypoglycemia | hypokalemia | hyponatremia | hypocalcemia

similar | similarity | similarities
different | differ | differs | difference | differences

hundreds
thousands
millions
billions

entire | entirely | whole
partial | partly | portion | small part
half

common | frequent | often
uncommon | rare | rarely | infrequent | seldom

support | supports | supporting | supported
against | oppose | opposes | opposing | opposed | overthrow

left | links | gauche | izquierda | esquerda | venstre | 左
right | rechts | droite | derecha | direita | høyre | 右

north | northern | nord | norte | nørdre
south | southern | süd | sud | sur | sul | sør
east | eastern | ost | est | este | leste | øst
west | western | ouest | oeste | vest
"""
)
"""Opposite directions, each side its words and phrases between bars."""

ALTERNATIVES: Final = _groups(
    """
enable | enabled | enabling | activate | activated | activating | activation | turn on | switch on | aktivieren
    | activer | activar | ativar | aktivere | slå på | 有効
disable | disabled | disabling | deactivate | deactivated | deactivating | deactivation | turn off | switch off
    | deaktivieren | désactiver | desactivar | desativar | deaktivere | slå av | 無効

add | adds | added | adding | hinzufügen | ajouter | añadir | agregar | adicionar | legge til | 追加
remove | removes | removed | removing | removal | delete | deletes | deleted | deleting | deletion | löschen |
    entfernen | supprimer | eliminar | borrar | remover | excluir | fjerne | slette | 削除

open | opens | opened | opening | öffnen | ouvrir | abrir | åpne | 開く
close | closes | closed | closing | schließen | fermer | cerrar | fechar | lukke | 閉じる

start | starts | started | starting | begin | begins | beginning | began | begun | beginnen | starten |
    commencer | empezar | começar | starte | 開始
stop | stops | stopped | stopping | end | ends | ended | ending | finish | finishes | finished | beenden |
    arrêter | terminar | parar | stoppe | avslutte | 終了 | 停止

import | imports | imported | importing | importieren | importer | importar | importere
export | exports | exported | exporting | exportieren | exporter | exportar | eksportere

buy | buys | buying | bought | purchase | purchased | purchasing | kaufen | acheter | comprar | kjøpe
sell | sells | selling | sold | verkaufen | vendre | vender | selge

send | sends | sending | sent | senden | envoyer | enviar | sende | 送る | 送信
receive | receives | receiving | received | empfangen | recevoir | recibir | receber | motta | 受け取る | 受信

upload | uploads | uploaded | uploading | hochladen | last opp
download | downloads | downloaded | downloading | herunterladen | last ned

install | installs | installed | installing | installation
uninstall | uninstalls | uninstalled | uninstalling

incoming | inbound | eingehende | entrant | entrante | innkommende
outgoing | outbound | ausgehende | sortant | saliente | utgående

internal | internally | intern | interne | interno | interna | 社内
external | externally | extern | externe | externo | externa | ekstern | 社外

domestic | national | inland | inlandsk | 国内
international | abroad | overseas | foreign | ausland | utland | 国外 | 海外

mandatory | required | compulsory | obligatory | obligatorisch | obligatoire | obligatorio | obrigatório |
    obligatorisk | 必須
optional | voluntary | facultatif | opcional | valgfri | 任意

allow | allows | allowed | permit | permits | permitted | erlaubt | autorisé | permitido | tillatt | 許可
forbid | forbids | forbidden | prohibit | prohibited | ban | banned | deny | denied | disallow | disallowed |
    verboten | interdit | prohibido | proibido | forbudt | 禁止

able | possible
unable | impossible

legal | lawful
illegal | unlawful

lock | locks | locked | locking | sperren
unlock | unlocks | unlocked | unlocking | entsperren

block | blocks | blocked | blocking
unblock | unblocks | unblocked | unblocking

encrypt | encrypted | encrypting | encryption
decrypt | decrypted | decrypting | decryption

accept | accepts | accepted | accepting | acceptance | approve | approved | approving | approval
reject | rejects | rejected | rejecting | rejection | decline | declined | refuse | refused | refusing

win | wins | won | winning | winner
lose | loses | lost | losing | loser

lend | lends | lent | lending
borrow | borrows | borrowed | borrowing

hire | hires | hired | hiring | join | joins | joined | joining | onboarding | onboard
fire | fires | fired | firing | dismiss | dismissed | dismissal | leave the company | resign | resigns |
    resigned | resignation | offboarding | offboard | terminate | terminated

arrive | arrives | arrived | arriving | arrival | arrivals
depart | departs | departed | departing | departure | departures

cause | causes | caused | causing
prevent | prevents | prevented | preventing | prevention
treat | treats | treated | treating | treatment | treatments | cure | cures | therapy
diagnose | diagnosed | diagnosing | diagnosis
symptom | symptoms

gain | gaining | gained
lose | losing | loss | lost

deposit | deposits | deposited | depositing
withdraw | withdraws | withdrew | withdrawal | withdrawals | withdrawing

credit
debit

input | inputs
output | outputs

create | creates | created | creating | erstellen | créer | crear | criar | opprette | 作成
delete | deletes | deleted | deleting | destroy | destroyed | löschen | supprimer | eliminar | slette | 削除
change | changes | changed | changing | edit | edits | edited | update | updates | updated | updating | modify |
    ändern | modifier | cambiar | alterar | endre | 変更
cancel | cancels | canceled | cancelled | cancelling | cancellation | stornieren | annuler | cancelar |
    avbestille | キャンセル
renew | renews | renewed | renewing | renewal | verlängern | renouveler | renovar | fornye | 更新

public | öffentlich | offentlig | 公開
private | confidential | privat | 非公開

paid
unpaid
free

gross | brutto | brut | bruto
net | netto | neto | líquido

married | marriage
divorced | divorce
unmarried | unwed

online | remote | remotely | from home
in person | on site | onsite | on-site | offline | in the office

full time | full-time | vollzeit | temps plein | heltid
part time | part-time | teilzeit | temps partiel | deltid

permanent | indefinite
temporary | fixed term | fixed-term | interim

employee | employees | staff | angestellte | mitarbeiter | employé | employés | salarié | salariés | empleado |
    empleados | funcionário | funcionários | ansatt | ansatte | 社員 | 従業員
contractor | contractors | freelancer | freelancers | consultant | consultants | auftragnehmer | freiberufler |
    prestataire | contratista | contratistas | prestador | konsulent | konsulenter | 業務委託
intern | interns | trainee | trainees | apprentice | apprentices | praktikant | praktikanten | stagiaire |
    stagiaires | becario | becarios | estagiário | estagiários | lærling | インターン
manager | managers | supervisor | supervisors | boss | vorgesetzte | führungskraft | gestionnaire | gerente |
    gerentes | gestor | leder | ledere | 管理職 | マネージャー
director | directors | executive | executives | ceo | cfo | cto | chair | chairman | 役員
customer | customers | client | clients | kunde | kunden | cliente | clientes | kunder | 顧客 | お客様
vendor | vendors | supplier | suppliers | lieferant | lieferanten | fournisseur | proveedor | proveedores |
    fornecedor | leverandør | 仕入先
visitor | visitors | guest | guests | besucher | gäste | besøkende | 訪問者
student | students | pupil | pupils | schüler | étudiant | estudiante | estudante | elev | 学生
teacher | teachers | lehrer | professeur | profesor | professor | lærer | 教師
administrator | administrators | admin | admins
patient | patients
doctor | doctors | physician | physicians | nurse | nurses

mother | maternity | mutter | mère | madre | mãe | mor | 母
father | paternity | vater | père | padre | pai | far | 父

man | men | male | males | boy | boys | he | his | him | husband | männer | homme | hommes | hombre | hombres |
    homem | mann | menn | 男性
woman | women | female | females | girl | girls | she | her | wife | frau | frauen | femme | femmes | mujer |
    mujeres | mulher | kvinne | kvinner | 女性

child | children | kid | kids | infant | infants | baby | babies | toddler | newborn | newborns | neonate |
    pediatric | kind | kinder | enfant | enfants | niño | niños | criança | barn | 子供
adult | adults | erwachsene | adulte | adultos | voksne | 大人
elderly | senior | seniors | geriatric

dog | dogs | puppy | puppies
cat | cats | kitten | kittens

today | heute | aujourd'hui | hoy | hoje | i dag | 今日 | 本日
yesterday | gestern | hier | ayer | ontem | i går | 昨日
tomorrow | morgen | demain | mañana | amanhã | i morgen | 明日

last year | previous year | letztes jahr | l'année dernière | el año pasado | ano passado | i fjor | 去年 | 昨年
this year | current year | dieses jahr | cette année | este año | este ano | i år | 今年
next year | coming year | nächstes jahr | l'année prochaine | próximo año | próximo ano | neste år | 来年

last month | previous month | letzten monat | 先月
this month | current month | diesen monat | 今月
next month | coming month | nächsten monat | 来月

last week | previous week | letzte woche | 先週
this week | current week | diese woche | 今週
next week | coming week | nächste woche | 来週

last quarter | previous quarter
this quarter | current quarter
next quarter | coming quarter

last | previous | former | formerly | past | vorherige | précédent | anterior | forrige | 前回
next | upcoming | future | following | nächste | prochain | siguiente | próximo | neste | 次回
current | currently | now | present | aktuell | actuel | actual | atual | nåværende | 現在

morning | mornings | breakfast | 朝
evening | evenings | dinner | 夜
afternoon | afternoons | lunch | noon | 午後
night | nights | midnight

am | a.m. | 午前
pm | p.m.

spring
summer | sommer | été | verano | verão | 夏
autumn | herbst | automne | otoño | outono | høst | 秋
winter | hiver | invierno | inverno | vinter | 冬

daily | every day | täglich | quotidien | diario | diário | 毎日
weekly | every week | wöchentlich | hebdomadaire | semanal | ukentlig | 毎週
monthly | every month | monatlich | mensuel | mensual | mensal | månedlig | 毎月
quarterly | every quarter | vierteljährlich | trimestriel | trimestral | kvartalsvis
yearly | annual | annually | every year | jährlich | annuel | anual | årlig | 毎年

day | days | tag | tage | jour | jours | día | días | dia | dias | dag | dager
week | weeks | woche | wochen | semaine | semaines | semana | semanas | uke | uker
month | months | monat | monate | mois | mes | meses | mês | måned | måneder
hour | hours | stunde | stunden | heure | heures | hora | horas
minute | minutes | minuten | minuto | minutos | minutt | minutter
year | years | jahr | jahre | année | années | año | años | ano | anos | år
decade | decades
century | centuries

kilometer | kilometers | kilometre | kilometres | km
mile | miles
meter | meters | metre | metres
feet | foot | ft
inch | inches
yard | yards

celsius
fahrenheit
kelvin

kilogram | kilograms | kilo | kilos | kg
pound | pounds | lb | lbs
ounce | ounces | oz
gram | grams

dollar | dollars | usd
euro | euros | eur
pounds | gbp | sterling
yen | jpy
kroner | krone | nok
franc | francs | chf

physical | paper
virtual | digital | electronic

android
ios | iphone | ipad

windows
mac | macos | osx
linux | ubuntu

visa
mastercard
amex

red
blue
green
yellow
black
white
brown
purple
orange
pink

type i
type ii

bacterial | bacteria | bacterium
viral | virus | viruses
fungal | fungus | fungi

acute
chronic

benign
malignant

positive
negative

upper | top
lower | bottom

inside | indoor | indoors
outside | outdoor | outdoors

mother | mothers
daughter | daughters
son | sons
sister | sisters
brother | brothers

hardware
software

problem | problems
solution | solutions

primary
secondary
tertiary

my | mine | our | ours
your | yours

encourage | encourages | encouraged | encouraging
discourage | discourages | discouraged | discouraging

client
server

read
write

teach | teaches | teaching | taught
learn | learns | learning | learned

give | gives | giving | gave
take | takes | taking | took
"""
)
"""Sides of one scope: roles, times, actions and their reverse, units asked for."""

KINDS: Final[tuple[tuple[str, ...], ...]] = (
    (
        "count",
        r"how many|what (?:is the |was the )?(?:total )?number of|wie ?viele|combien de|cuánt[oa]s|quant[oa]s",
        *("hvor mange", "いくつ", "何人", "何個"),
    ),
    (
        "amount",
        r"how much|what (?:percentage|percent|proportion|amount|share|fraction)|wie ?viel|combien|cuánto|quanto",
        *(r"how (?:large|big|high|tall|heavy|far|deep)|hvor mye", "いくら"),
    ),
    (
        "duration",
        r"how long|what (?:is the )?(?:duration|length of time)|wie lange|combien de temps|cuánto tiempo",
        *(r"quanto tempo|hvor lenge", "どのくらい"),
    ),
    ("age", r"how old"),
    ("frequency", r"how often|how frequently|wie oft|hvor ofte"),
    (
        "when",
        r"when|how soon|(?:what|which) (?:year|date|day|month|time|century|decade|era|period)|wann|quand",
        *(r"cuándo|quando|når", "いつ"),
    ),
    (
        "where",
        r"where|(?:what|which) (?:country|city|place|location|state|continent|region|town|county|office|building)",
        *(r"wo|woher|wohin|où|dónde|donde|onde|hvor", "どこ"),
    ),
    (
        "who",
        r"who|whom|whose|(?:what|which) (?:person|people|man|woman|scientist|author|king|queen|president)",
        *(r"wer|wem|wen|qui|quién|quem|hvem", "誰"),
    ),
    (
        "why",
        r"why|what (?:is|was|are|were)? ?(?:the )?reasons?|how come|for what reason|warum|wieso|weshalb|pourquoi",
        *(r"por ?qué|por que|porque|hvorfor", "なぜ", "どうして"),
    ),
    (
        "how",
        r"what (?:is|are|'s) (?:the |some )?(?:best |easiest |right |correct )?(?:ways?|steps?|process|method)",
        *(r"how|in what way|wie|comment|cómo|como|hvordan", "どうやって", "方法"),
    ),
    (
        "definition",
        r"what does [^?]+ mean|what is the (?:meaning|definition) of|was bedeutet|que signifie|qué significa",
        *(r"o que significa|hva betyr", "とは"),
    ),
    (
        "what",
        r"what|which|welche[rsnm]?|que|quoi|quel(?:le)?s?|qué|cuál(?:es)?|qual|quais|hva|hvilken|hvilke",
        *("何", "どの", "どれ"),
    ),
)
"""Kinds of questions by name, and the patterns that begin them; of two that begin together, the first counts."""

STOP_WORDS: Final = _words(
    "a an the this that these those there here it its it's i me my mine myself you your yours we us our ours they "
    "them their one ones he she his her him who whom whose which what when where why how is are was were be been "
    "being am do does did done doing have has had having can could will would shall should may might must to of "
    "in on at by for with from as into onto about and or but if then than so too also just please thanks thank hi "
    "hello hey dear kindly any some all much many very really actually exactly currently ever still yet again s t "
    "d ll re ve m let lets 's im ive id der die das den dem des ein eine einen einem einer eines und oder ist "
    "sind war ich du wir ihr sie es mein meine wie wann wo wer warum kann können muss müssen soll zu zum zur auf "
    "für mit von bei man bitte mir mich le la les un une de et ou est sont je tu nous vous il elle mon ma mes "
    "comment que quoi quand où qui pourquoi peut puis puis-je dois à au aux dans sur pour avec par se sa son ses "
    "ce cette el los las unos unas y o yo mi mis cómo qué cuándo dónde quién puedo puede debo al en para con por "
    "su sus os um uma e é são eu meu minha como quando onde quem posso pode devo ao no na nos nas em com da dos "
    "ei og eller er var jeg vi min mitt hvordan hva når hvor hvem hvorfor kan må skal til på av med fra om det "
    "som"
)

LIGHT_WORDS: Final = _words(
    "get getting got go going want need needs needed like would know tell show find help give make made making "
    "use used using work works working way ways best good better right proper correct easiest easy quick steps "
    "step process procedure method possible able happen happens happened happening explain describe information "
    "info details detail question ask asking answer thing things something anything someone anyone somebody "
    "people person user users called name names known term word say said says mean means meaning look see seem "
    "think try trying come came put take takes took taken keep kind type types sort example examples reason "
    "reasons cause purpose exactly generally usually typically often common commonly main major certain specific "
    "particular available include includes including contain contains following first current own new number "
    "total amount long time year day date place located location part many much really quite let wondering wonder "
    "interested understand learn issue problem problems"
)
"""Words that seldom decide what is asked."""

SYNONYMS: Final[tuple[str, ...]] = tuple(
    """
begin start commence
end finish stop terminate
buy purchase
big large
small little
quick fast rapid
fix repair solve resolve
error failure fault
obtain get receive acquire
show display
pick choose select
phone telephone mobile cellphone
car automobile vehicle
doctor physician doctors
child kid
allow permit
delete remove erase
create make generate
change modify alter edit update
salary pay wage wages
vacation holiday leave
employee staff worker
company firm business employer
job position role
help assist
movie film
picture photo image
sick ill
disease illness
treat treatment therapy treated
drug medication medicine
cost price fee charge
pc computer
laptop notebook
email e-mail mail
login signin log-in sign-in logon
password passcode
find locate
reset restore
country nation
percent percentage proportion
die death died
born birth
construct build built
found founded established establish
locate located situated
occur happen
kid child children
earn make
weight kilos
money cash
approximately about roughly around
need require required
submit send file
claim reimbursement expense
purpose goal aim
important significant
indicate indicated indication
contraindication contraindicated
dosage dose
appropriate proper
kids children
usa america
pregnancy pregnant
woman female women
man male men
""".strip().split("\n")
)
"""Words that are taken for one another when the wording is compared; each row is one meaning."""
